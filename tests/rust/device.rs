//! What the device of these tests computes: `CANDLEWICK_TEST_DEVICE`, or the CPU.

use candlewick::selftest::{Check, SelftestOptions, selftest};

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
