use candle_core::{DType, Device, Tensor, Var};

use super::*;
use crate::kernels::simd::Level;

/// Numbers in -1..1 that differ from seed to seed.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| next()).collect()
}

fn tensor(seed: u64, dims: (usize, usize, usize)) -> Tensor {
    Tensor::from_vec(noise(seed, dims.0 * dims.1 * dims.2), dims, &Device::Cpu).unwrap()
}

fn assert_close(got: &Tensor, want: &Tensor, tolerance: f32, what: &str) {
    assert_eq!(got.dims(), want.dims(), "{what}");
    let flat = |x: &Tensor| x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (i, (got, want)) in flat(got).into_iter().zip(flat(want)).enumerate() {
        let close = (got - want).abs() <= tolerance * want.abs().max(1.0);
        assert!(close, "{what}: element {i}: got {got}, expected {want}");
    }
}

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
        let bias = Tensor::from_vec(noise(9, heads * 599), (heads, 599), &Device::Cpu).unwrap();
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
            let bias = Tensor::from_vec(noise(9, heads * 1399), (heads, 1399), &Device::Cpu).unwrap();
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

/// The gradients of `sum(attention * weight)` in q, k and v.
fn gradients(vars: &[Var; 3], weight: &Tensor, y: Tensor) -> Vec<Tensor> {
    let grads = (y * weight).unwrap().sum_all().unwrap().backward().unwrap();
    vars.iter().map(|var| grads.get(var).unwrap().clone()).collect()
}

#[test]
fn gradients_equal_the_references() {
    let offsets = [0, 1, 1, 30, 32, 200, 320];
    for (heads, kv_heads, head_dim) in [(6, 2, 64), (3, 3, 20), (7, 1, 33), (2, 1, 128)] {
        let bias = Tensor::from_vec(noise(9, heads * 599), (heads, 599), &Device::Cpu).unwrap();
        let var = |seed, heads| Var::from_tensor(&tensor(seed, (320, heads, head_dim))).unwrap();
        let vars = [var(1, heads), var(2, kv_heads), var(3, kv_heads)];
        let weight = tensor(4, (320, heads, head_dim));
        let [q, k, v] = vars.each_ref();
        for (kind, args) in kinds(&offsets, &bias) {
            let want = gradients(&vars, &weight, reference::attention(q, k, v, &args).unwrap());
            for level in Level::all() {
                let got = gradients(&vars, &weight, op::attention(level, (q, k, v), &args).unwrap());
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
    let q = Var::from_tensor(&tensor(1, (9, 2, 8))).unwrap();
    let y = attention(&q, &k, &v, &plain(&[0, 4, 9])).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&q).is_some() && grads.get(&k).is_none() && grads.get(&v).is_none());
}

/// Long enough for several parts of the backward pass and several stretches of a cache.
#[test]
fn batch_mates_and_threads_change_nothing() {
    let (heads, kv_heads, d) = (4, 2, 16);
    let bits = |x: &Tensor| -> Vec<u32> {
        x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
    };
    let (q, k, v) =
        (tensor(1, (930, heads, d)), tensor(2, (930, kv_heads, d)), tensor(3, (930, kv_heads, d)));
    let run = |start: usize, offsets: &[usize]| {
        let part =
            |x: &Tensor| Var::from_tensor(&x.narrow(0, start, offsets[offsets.len() - 1]).unwrap()).unwrap();
        let vars = [part(&q), part(&k), part(&v)];
        let y = attention(&vars[0], &vars[1], &vars[2], &plain(offsets)).unwrap();
        let mut all = gradients(&vars, &y.detach(), y.clone());
        all.push(y.detach());
        all
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
