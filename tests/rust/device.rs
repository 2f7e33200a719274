//! What the device of these tests computes: `CANDLEWICK_TEST_DEVICE`, or the CPU.

use candlewick::device::{allocated_bytes, open};
use candlewick::embed::{Embedder, EmbedderOptions, EncodeOptions, Watch};
use candlewick::selftest::{Check, SelftestOptions, selftest};
use candlewick::{GenerationOptions, Generator, LoadOptions, Model};

use crate::fixtures::device;

#[test]
fn it_computes_what_plain_operations_compute() {
    let options = SelftestOptions { device: device(), bundled: None };
    let mut checks: Vec<Check> = Vec::new();
    let failed = selftest(&options, &mut |check| {
        checks.push(check.clone());
        Ok(())
    })
    .unwrap();
    let bad: Vec<_> = checks.iter().filter(|check| !check.passed()).collect();
    assert_eq!((failed, bad.len()), (0, 0), "{bad:#?}");
    assert!(checks.len() > 60, "{}", checks.len());
    assert!(checks.iter().any(|check| check.difference > 0.0), "nothing was compared");
}

/// Work of the same kind needs no more memory the twelfth time than it did before.
#[test]
#[ignore = "measures the device of the whole process: run it alone"]
fn memory_stays_where_it_is() {
    let opened = open(&device()).unwrap();
    if allocated_bytes(&opened).is_none() {
        return; // This driver does not say.
    }
    let load = LoadOptions { device: device(), ..LoadOptions::default() };
    let model = Model::load("candlewick/tiny", &load).unwrap();
    let embedder =
        Embedder::load("candlewick/tiny", &EmbedderOptions { load, ..EmbedderOptions::default() }).unwrap();
    let generator = Generator::new(&model);
    let options =
        GenerationOptions { max_new_tokens: 8, temperature: Some(0.0), ..GenerationOptions::default() };
    let work = |round: usize| {
        let prompt = "Once upon a time ".repeat(1 + round % 3);
        for token in generator.stream(&prompt.as_str().into(), &options, None).unwrap() {
            token.unwrap();
        }
        let texts: Vec<String> = (0..1 + round % 4).map(|i| "dog ".repeat(i + round)).collect();
        embedder.encode(&texts, &EncodeOptions::default(), Watch::NONE).unwrap();
        allocated_bytes(&opened).unwrap()
    };
    let levels: Vec<u64> = (1..=12).map(work).collect();
    let (early, late) = (levels[..6].iter().max().unwrap(), levels[6..].iter().max().unwrap());
    assert!(late <= &(early + (1 << 20)), "bytes after each round: {levels:?}");
}
