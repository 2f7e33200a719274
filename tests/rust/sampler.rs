//! Sampling against transformers' logits processors, as probabilities and as draws.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use candlewick::Error;
use candlewick::generate::{Sampler, SamplingParams};
use serde_json::Value;

struct Case {
    params: SamplingParams,
    prompt: Vec<u32>,
    output: Vec<u32>,
    logits: Vec<f32>,
    /// Dense, by token id.
    probabilities: Vec<f32>,
}

impl Case {
    /// A sampler that has seen the prompt and the output.
    fn sampler(&self, params: SamplingParams) -> Sampler {
        let mut sampler = Sampler::new(params, &self.prompt, self.logits.len()).unwrap();
        for &token in &self.output {
            let mut only = vec![f32::NEG_INFINITY; self.logits.len()];
            only[token as usize] = 1.0;
            assert_eq!(sampler.sample(&mut only).unwrap().token, token);
        }
        sampler
    }
}

fn number(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn pairs(value: &Value) -> Vec<(u32, f32)> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|pair| (pair[0].as_u64().unwrap() as u32, number(&pair[1])))
        .collect()
}

fn parameters(given: &Value) -> SamplingParams {
    let mut params = SamplingParams { temperature: 1.0, seed: 11, ..SamplingParams::default() };
    for (name, value) in given.as_object().unwrap() {
        match name.as_str() {
            "temperature" => params.temperature = number(value),
            "top_k" => params.top_k = value.as_u64().unwrap() as usize,
            "top_p" => params.top_p = number(value),
            "min_p" => params.min_p = number(value),
            "repetition_penalty" => params.repetition_penalty = number(value),
            "presence_penalty" => params.presence_penalty = number(value),
            "frequency_penalty" => params.frequency_penalty = number(value),
            "logit_bias" => params.logit_bias = pairs(value),
            other => panic!("unknown parameter {other}"),
        }
    }
    params
}

fn cases() -> Vec<Case> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/sampler/cases.json");
    let cases: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let read = |case: &Value| {
        let logits: Vec<f32> = case["logits"].as_array().unwrap().iter().map(number).collect();
        let mut probabilities = vec![0.0; logits.len()];
        for (id, probability) in pairs(&case["probabilities"]) {
            probabilities[id as usize] = probability;
        }
        let (prompt, output) = (ids(&case["prompt"]), ids(&case["output"]));
        Case { params: parameters(&case["params"]), prompt, output, logits, probabilities }
    };
    let cases: Vec<Case> = cases.as_array().unwrap().iter().map(read).collect();
    assert!(cases.len() >= 55, "{} cases", cases.len());
    cases
}

#[test]
fn probabilities_equal_those_of_transformers() {
    for case in cases() {
        let mut sampler = case.sampler(case.params.clone());
        // Twice: a distribution leaves no trace.
        for _ in 0..2 {
            let got = sampler.distribution(&mut case.logits.clone()).unwrap();
            for (id, (got, expected)) in got.iter().zip(&case.probabilities).enumerate() {
                let params = &case.params;
                assert!((got - expected).abs() < 1e-5, "{params:?}: token {id}: {got} {expected}");
                assert_eq!(*got > 1e-9, *expected > 1e-9, "{params:?}: token {id}: {got} {expected}");
            }
        }
    }
}

#[test]
fn what_is_reported_is_the_distribution() {
    for case in cases() {
        let params = SamplingParams { logprobs: 5, ..case.params.clone() };
        let mut sampler = case.sampler(params);
        let sampled = sampler.sample(&mut case.logits.clone()).unwrap();
        let expected = case.probabilities[sampled.token as usize];
        assert!((sampled.probability - expected).abs() < 1e-5 && expected > 0.0);
        assert!((sampled.logprob - expected.ln()).abs() < 1e-4, "{} {expected}", sampled.logprob);
        assert_eq!(sampled.logit, case.logits[sampled.token as usize]);

        let mut sorted: Vec<(u32, f32)> = (0..).zip(case.probabilities.iter().copied()).collect();
        sorted.retain(|(_, p)| *p > 0.0);
        sorted.sort_by(|a, b| b.1.total_cmp(&a.1));
        let likely = |n: usize| sorted[n].1;
        assert!(sampled.top_logprobs.len() <= 5);
        for (n, (id, logprob)) in sampled.top_logprobs.iter().enumerate() {
            if n < sorted.len() {
                assert!((logprob.exp() - likely(n)).abs() < 1e-5);
                assert!((case.probabilities[*id as usize] - likely(n)).abs() < 1e-5);
            }
        }
        assert!(sampled.top_logprobs.len() >= 5.min(sorted.len()));
    }
}

/// The chi-square statistic of `draws` against probabilities, and its degrees of freedom; rare tokens count as one.
fn chi_square(draws: &[u32], probabilities: &[f32]) -> (f64, usize) {
    let mut counts = vec![0u32; probabilities.len()];
    draws.iter().for_each(|&token| counts[token as usize] += 1);
    let (mut bins, mut rare) = (Vec::new(), (0.0, 0.0));
    for (&count, &probability) in counts.iter().zip(probabilities) {
        assert!(count == 0 || probability > 0.0, "drew a token without probability");
        let expected = f64::from(probability) * draws.len() as f64;
        if expected >= 5.0 {
            bins.push((f64::from(count), expected));
        } else {
            rare = (rare.0 + f64::from(count), rare.1 + expected);
        }
    }
    if rare.1 >= 5.0 {
        bins.push(rare);
    }
    (bins.iter().map(|(count, expected)| (count - expected).powi(2) / expected).sum(), bins.len().max(1) - 1)
}

#[test]
fn draws_follow_the_distribution() {
    let mut dispersed = 0;
    for case in cases() {
        // Penalties would change the distribution with every draw: they are tested above.
        let SamplingParams { temperature, top_k, top_p, min_p, .. } = case.params;
        let params =
            SamplingParams { temperature, top_k, top_p, min_p, seed: 3, ..SamplingParams::default() };
        let mut sampler = Sampler::new(params, &[], case.logits.len()).unwrap();
        let probabilities = sampler.distribution(&mut case.logits.clone()).unwrap();
        let draws: Vec<u32> =
            (0..4000).map(|_| sampler.sample(&mut case.logits.clone()).unwrap().token).collect();
        let (statistic, freedom) = chi_square(&draws, &probabilities);
        // Five standard deviations of the chi-square distribution, widened for its heavy upper tail.
        let bound = freedom as f64 + 5.0 * (2.0 * freedom as f64).sqrt() + 10.0;
        assert!(statistic < bound, "{:?}: {statistic} with {freedom} degrees", case.params);
        dispersed += usize::from(freedom > 5);
    }
    assert!(dispersed > 20, "only {dispersed} cases had anything to draw");
}

#[test]
fn draws_over_a_large_vocabulary_follow_the_distribution() {
    // Blocks of 1024 logits are drawn in two steps: the sizes here end inside a block.
    let vocab = 2500;
    let logits: Vec<f32> = (0..vocab).map(|i| ((i * 7919) % 497) as f32 / 125.0).collect();
    for top_p in [1.0, 0.9] {
        let params = SamplingParams { temperature: 1.0, top_p, seed: 5, ..SamplingParams::default() };
        let mut sampler = Sampler::new(params, &[], vocab).unwrap();
        let probabilities = sampler.distribution(&mut logits.clone()).unwrap();
        assert!((probabilities.iter().map(|&p| f64::from(p)).sum::<f64>() - 1.0).abs() < 1e-5);
        let draws: Vec<u32> =
            (0..20_000).map(|_| sampler.sample(&mut logits.clone()).unwrap().token).collect();
        let (statistic, freedom) = chi_square(&draws, &probabilities);
        assert!(freedom > 1000);
        let deviations = (statistic - freedom as f64) / (2.0 * freedom as f64).sqrt();
        assert!(deviations.abs() < 5.0, "{statistic} with {freedom} degrees");
    }
}

fn tokens(params: &SamplingParams, n: usize) -> Vec<u32> {
    let logits: Vec<f32> = (0..200).map(|i| ((i * 37) % 101) as f32 / 20.0).collect();
    let mut sampler = Sampler::new(params.clone(), &[1, 2], 200).unwrap();
    (0..n).map(|_| sampler.sample(&mut logits.clone()).unwrap().token).collect()
}

#[test]
fn a_seed_means_the_same_in_every_release() {
    let params = SamplingParams { temperature: 0.9, seed: 1234, ..SamplingParams::default() };
    const PLAIN: [u32; 8] = [149, 158, 98, 87, 119, 145, 8, 98];
    const TOP_P: [u32; 8] = [147, 158, 98, 87, 120, 144, 8, 98];
    assert_eq!(tokens(&params, 8), PLAIN);
    assert_eq!(tokens(&SamplingParams { top_p: 0.8, ..params.clone() }, 8), TOP_P);
    assert_ne!(tokens(&SamplingParams { seed: 1235, ..params }, 8), PLAIN);
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    let params = SamplingParams { logprobs: 2, top_k: 1, ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, &[], 4).unwrap();
    let sampled = sampler.sample(&mut [0.0, 3.0, 3.0, 1.0]).unwrap();
    assert_eq!((sampled.token, sampled.logit), (1, 3.0));
    // The softmax at temperature 1, whatever filters say.
    let total = 2.0 * 3f32.exp() + 1f32.exp() + 1.0;
    assert!((sampled.probability - 3f32.exp() / total).abs() < 1e-6);
    assert_eq!(sampled.top_logprobs.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn greedy_sees_penalties_and_reports_the_raw_logit() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 1.0,
        logit_bias: vec![(3, 4.0)],
        ..SamplingParams::default()
    };
    let mut sampler = Sampler::new(params, &[0, 0, 99], 4).unwrap();
    let logits = [5.0, 3.0, -1.0, 0.5];
    let mut next = || {
        let sampled = sampler.sample(&mut logits.clone()).unwrap();
        (sampled.token, sampled.logit)
    };
    // 2.5, 3, -1, 4.5 → 2.5, 3, -1, 3.25 (0.5/2 − 1 + 4) → unchanged, as repetition counts once → …
    assert_eq!([next(), next(), next()], [(3, 0.5), (3, 0.5), (3, 0.5)]);
    let params = SamplingParams { frequency_penalty: 1.5, ..SamplingParams::default() };
    let mut sampler = Sampler::new(params, &[0, 0, 0], 3).unwrap();
    let mut next = || sampler.sample(&mut [5.0, 3.2, 1.0]).unwrap().token;
    // 5 → 3.5 → 2 | 3.2 → 1.7: the prompt does not count, each output does.
    assert_eq!([next(), next(), next(), next()], [0, 0, 1, 0]);
}

#[test]
fn odd_logits_are_defined() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let params = |temperature: f32, top_p: f32| SamplingParams {
        temperature,
        top_p,
        min_p: if top_p < 1.0 { 0.1 } else { 0.0 },
        ..SamplingParams::default()
    };
    for params in
        [params(0.0, 1.0), params(1.0, 1.0), params(1.0, 0.9), params(1e-30, 1.0), params(1e30, 0.5)]
    {
        let mut sampler = Sampler::new(params.clone(), &[], 4).unwrap();
        // A NaN is no token.
        let sampled = sampler.sample(&mut [nan, -inf, 2.0, nan]).unwrap();
        assert_eq!((sampled.token, sampled.probability, sampled.logprob), (2, 1.0, 0.0), "{params:?}");
        // Infinities share the probability.
        let probabilities = sampler.distribution(&mut [inf, 3.0, nan, -inf]).unwrap();
        assert_eq!(probabilities, [1.0, 0.0, 0.0, 0.0], "{params:?}");
        if params.top_p == 1.0 {
            let probabilities = sampler.distribution(&mut [inf, 3.0, inf, -inf]).unwrap();
            assert_eq!(probabilities, [0.5, 0.0, 0.5, 0.0], "{params:?}");
        }
        let error = sampler.sample(&mut [nan, -inf, nan, -inf]).unwrap_err();
        assert!(matches!(error, Error::Internal { .. }), "{error}");
        assert!(error.to_string().contains("NaN or negative infinity"), "{error}");
        assert!(sampler.sample(&mut [1.0; 3]).unwrap_err().to_string().contains("got 3 logits, expected 4"));
    }
    // A temperature so small that a quotient would overflow still prefers the largest logit.
    let mut sampler = Sampler::new(params(1e-38, 1.0), &[], 3).unwrap();
    assert_eq!(sampler.distribution(&mut [30.0, 31.0, 29.0]).unwrap(), [0.0, 1.0, 0.0]);
}

#[test]
fn bad_parameters_are_refused() {
    let params = SamplingParams { top_p: 0.0, logit_bias: vec![(7, 1.0)], ..SamplingParams::default() };
    let error = Sampler::new(params, &[], 7).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidArgument { name, .. } if name == "top_p, logit_bias[7]"),
        "{error}"
    );
}

#[test]
fn every_token_of_a_flat_distribution_can_be_drawn() {
    for params in [
        SamplingParams { temperature: 1.0, ..SamplingParams::default() },
        SamplingParams { temperature: 1.0, top_k: 3, ..SamplingParams::default() },
    ] {
        // With ties, top-k keeps all that equal the k-th.
        let mut sampler = Sampler::new(params, &[], 2000).unwrap();
        let drawn: HashSet<u32> =
            (0..30_000).map(|_| sampler.sample(&mut [1.0; 2000]).unwrap().token).collect();
        assert_eq!(drawn.len(), 2000);
    }
}
