//! Tests of attention: every path equals the reference, alone and in a batch, forward and backward.

use candle_core::{DType, Device, Tensor, Var};

use super::*;
use crate::kernels::simd::Level;
use crate::kernels::testing::{assert_close, assert_differences, bits, gradients, tensor, var};

fn plain(offsets: &[usize]) -> AttentionArgs<'_> {
    AttentionArgs { offsets, scale: 0.7, causal: true, window: None, bias: None }
}

/// Every kind of mask over `offsets`, with its name.
fn kinds<'a>(offsets: &'a [usize], bias: &'a Tensor) -> Vec<(&'static str, AttentionArgs<'a>)> {
    let causal = plain(offsets);
    let open = AttentionArgs { causal: false, ..causal };
    vec![
        ("causal", causal),
        ("causal window 1", AttentionArgs { window: Some(1), ..causal }),
        ("causal window 70", AttentionArgs { window: Some(70), ..causal }),
        ("causal with bias", AttentionArgs { bias: Some(bias), ..causal }),
        ("open", open),
        ("open window 0", AttentionArgs { window: Some(0), ..open }),
        ("open window 75", AttentionArgs { window: Some(75), ..open }),
        ("open with bias", AttentionArgs { bias: Some(bias), ..open }),
    ]
}

#[test]
fn every_level_equals_the_reference() {
    let offsets = [0, 1, 1, 30, 32, 200, 450];
    for (heads, kv_heads, head_dim) in [(6, 2, 64), (3, 3, 20), (7, 1, 33), (2, 1, 128)] {
        let bias = tensor(9, (heads, 599));
        let q = (tensor(1, (450, heads, head_dim)) * 3.0).unwrap();
        let k = tensor(2, (450, kv_heads, head_dim));
        let v = tensor(3, (450, kv_heads, head_dim));
        for (kind, args) in kinds(&offsets, &bias) {
            let want = reference::attention(&q, &k, &v, &args).unwrap();
            for level in Level::all() {
                let got = op::attention(level, (&q, &k, &v), &args).unwrap();
                assert_close(&got, &want, 2e-5, &format!("{kind}, {heads}/{kv_heads}x{head_dim}, {level:?}"));
            }
        }
    }
}

#[test]
fn every_level_equals_the_reference_over_caches() {
    let (lens, queries) = ([700usize, 1, 40, 513, 300], [1usize, 1, 40, 2, 0]);
    let offsets: Vec<usize> =
        queries.iter().scan(0, |sum, n| Some(std::mem::replace(sum, *sum + n))).chain([44]).collect();
    for (heads, kv_heads, head_dim) in [(6, 2, 64), (3, 3, 20), (33, 1, 40), (2, 1, 128)] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let bias = tensor(9, (heads, 1399));
            let q = (tensor(1, (44, heads, head_dim)) * 3.0).unwrap();
            let stored: Vec<(Tensor, Tensor)> = lens
                .iter()
                .map(|len| {
                    let cache = |seed| tensor(seed, (len + 3, kv_heads, head_dim)).to_dtype(dtype).unwrap();
                    (cache(*len as u64), cache(1000 + *len as u64))
                })
                .collect();
            let caches: Vec<KeyValues> =
                stored.iter().zip(lens).map(|((k, v), len)| KeyValues { k, v, len }).collect();
            for (kind, args) in kinds(&offsets, &bias) {
                let want = reference::cached_attention(&q, &caches, &args).unwrap();
                for level in Level::all() {
                    let got = op::cached_attention(level, &q, &caches, &args).unwrap();
                    let what = format!("{kind}, {heads}/{kv_heads}x{head_dim}, {dtype:?}, {level:?}");
                    assert_close(&got, &want, 2e-5, &what);
                }
            }
        }
    }
}

#[test]
fn rows_may_lie_anywhere() {
    let fused = tensor(5, (50, 6 + 2 + 2, 16));
    let part = |start, n| fused.narrow(1, start, n).unwrap();
    let (q, k, v) = (part(0, 6), part(6, 2), part(8, 2));
    let args = plain(&[0, 20, 50]);
    let want = reference::attention(&q, &k, &v, &args).unwrap();
    assert_close(&attention(&q, &k, &v, &args).unwrap(), &want, 1e-5, "strided heads");
    let across = |x: &Tensor| x.transpose(1, 2).unwrap().contiguous().unwrap().transpose(1, 2).unwrap();
    assert_close(&attention(&across(&q), &across(&k), &v, &args).unwrap(), &want, 1e-5, "strided rows");
}

#[test]
fn gradients_equal_the_references() {
    let offsets = [0, 1, 1, 30, 32, 200, 320];
    for (heads, kv_heads, head_dim) in [(6, 2, 64), (3, 3, 20), (7, 1, 33), (2, 1, 128)] {
        let bias = tensor(9, (heads, 599));
        let q = &var(1, (320, heads, head_dim));
        let (k, v) = (&var(2, (320, kv_heads, head_dim)), &var(3, (320, kv_heads, head_dim)));
        for (kind, args) in kinds(&offsets, &bias) {
            let want = gradients(&[q, k, v], &reference::attention(q, k, v, &args).unwrap());
            for level in Level::all() {
                let got = gradients(&[q, k, v], &op::attention(level, (q, k, v), &args).unwrap());
                for ((got, want), name) in got.iter().zip(&want).zip(["q", "k", "v"]) {
                    let what = format!("{name}, {kind}, {heads}/{kv_heads}x{head_dim}, {level:?}");
                    assert_close(got, want, 2e-5, &what);
                }
            }
        }
    }
}

#[test]
fn only_what_is_trained_gets_a_gradient() {
    let (k, v) = (tensor(2, (9, 1, 8)), tensor(3, (9, 1, 8)));
    let q = var(1, (9, 2, 8));
    let y = attention(&q, &k, &v, &plain(&[0, 4, 9])).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&q).is_some() && grads.get(&k).is_none() && grads.get(&v).is_none());
}

/// Long enough for several parts of the backward pass and several stretches of a cache.
#[test]
fn batch_mates_and_threads_change_nothing() {
    let (heads, kv_heads, d) = (4, 2, 16);
    let (q, k, v) =
        (tensor(1, (930, heads, d)), tensor(2, (930, kv_heads, d)), tensor(3, (930, kv_heads, d)));
    let run = |start: usize, offsets: &[usize]| {
        let part =
            |x: &Tensor| Var::from_tensor(&x.narrow(0, start, offsets[offsets.len() - 1]).unwrap()).unwrap();
        let (q, k, v) = (&part(&q), &part(&k), &part(&v));
        let y = attention(q, k, v, &plain(offsets)).unwrap();
        let grads = (&y * y.detach()).unwrap().sum_all().unwrap().backward().unwrap();
        [&y.detach(), grads.get(q).unwrap(), grads.get(k).unwrap(), grads.get(v).unwrap()].map(Tensor::clone)
    };
    let together = run(0, &[0, 30, 830, 930]);
    for (start, len) in [(0, 30), (30, 800), (830, 100)] {
        for (alone, together) in run(start, &[0, len]).iter().zip(&together) {
            assert!(bits(alone) == bits(&together.narrow(0, start, len).unwrap()), "sequence at {start}");
        }
    }

    let cached = |queries: &[usize], lens: &[usize]| {
        let caches: Vec<KeyValues> = lens.iter().map(|&len| KeyValues { k: &k, v: &v, len }).collect();
        let offsets: Vec<usize> = (0..=queries.len()).collect();
        let rows: Vec<u32> = queries.iter().map(|&i| i as u32).collect();
        let q = q.index_select(&Tensor::new(rows, &Device::Cpu).unwrap(), 0).unwrap();
        cached_attention(&q, &caches, &plain(&offsets)).unwrap()
    };
    let together = cached(&[3, 5, 8], &[920, 17, 300]);
    for (i, (query, len)) in [(3, 920), (5, 17), (8, 300)].into_iter().enumerate() {
        assert!(bits(&cached(&[query], &[len])) == bits(&together.narrow(0, i, 1).unwrap()), "cache {i}");
    }
}

#[test]
fn gradients_equal_differences() {
    let bias = tensor(9, (4, 39));
    let (q, k, v) = (var(1, (24, 4, 6)), var(2, (24, 2, 6)), var(3, (24, 2, 6)));
    for (kind, args) in kinds(&[0, 5, 24], &bias) {
        // With one key to see, nothing depends on queries and keys.
        if !kind.ends_with("window 1") && !kind.ends_with("window 0") {
            let f = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], &args).unwrap();
            assert_differences(&[&q, &k, &v], f, kind);
        }
    }
}

#[test]
fn nothing_to_attend_to() {
    let empty = tensor(1, (0, 2, 8));
    assert_eq!(attention(&empty, &empty, &empty, &plain(&[0])).unwrap().dims(), [0, 2, 8]);
    assert_eq!(cached_attention(&empty, &[], &plain(&[0])).unwrap().dims(), [0, 2, 8]);
    let cache = tensor(2, (4, 2, 8));
    let caches = [KeyValues { k: &cache, v: &cache, len: 0 }];
    assert_eq!(cached_attention(&empty, &caches, &plain(&[0, 0])).unwrap().dims(), [0, 2, 8]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let (q, k) = (tensor(1, (5, 4, 8)), tensor(2, (5, 2, 8)));
    let bias = tensor(3, (4, 7));
    let fails = |k: &Tensor, v: &Tensor, args: AttentionArgs| attention(&q, k, v, &args).unwrap_err();
    fails(&tensor(2, (5, 3, 8)), &tensor(2, (5, 3, 8)), plain(&[0, 5]));
    fails(&k, &tensor(2, (5, 2, 9)), plain(&[0, 5]));
    fails(&tensor(2, (4, 2, 8)), &tensor(2, (4, 2, 8)), plain(&[0, 5]));
    fails(&k, &k, plain(&[0, 4]));
    fails(&k, &k, plain(&[0, 6, 5]));
    fails(&k, &k, plain(&[]));
    fails(&k, &k, AttentionArgs { window: Some(0), ..plain(&[0, 5]) });
    fails(&k, &k, AttentionArgs { bias: Some(&bias), ..plain(&[0, 5]) });
    let too_long = KeyValues { k: &k, v: &k, len: 6 };
    cached_attention(&q, &[too_long], &plain(&[0, 5])).unwrap_err();
    cached_attention(&q, &[KeyValues { len: 4, ..too_long }], &plain(&[0, 5])).unwrap_err();
    cached_attention(&q, &[], &plain(&[0, 5])).unwrap_err();
}

/// 32k tokens would need 4 GiB for one head's scores.
#[test]
fn a_long_prompt_needs_little_memory() {
    let x = tensor(1, (32_768, 1, 4));
    let window = |x: &Tensor, offsets: &[usize]| {
        attention(x, x, x, &AttentionArgs { window: Some(100), ..plain(offsets) }).unwrap()
    };
    let got = window(&x, &[0, 32_768]).narrow(0, 30_100, 100).unwrap();
    let want = window(&x.narrow(0, 30_000, 200).unwrap(), &[0, 200]).narrow(0, 100, 100).unwrap();
    assert_close(&got, &want, 1e-5, "the window's keys");
}
