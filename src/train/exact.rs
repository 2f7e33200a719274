//! Numbers in JSON that come back as the very same: written as text, because the fast parser of numbers may be off by a
//! bit in the last place.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What [`serialize`] and [`deserialize`] take.
pub(super) trait Exact: Sized {
    /// The numbers in order.
    fn numbers(&self) -> Vec<f64>;
    /// The same from its numbers.
    fn from_numbers(numbers: &[f64]) -> Option<Self>;
}

impl Exact for f64 {
    fn numbers(&self) -> Vec<f64> {
        vec![*self]
    }

    fn from_numbers(numbers: &[f64]) -> Option<Self> {
        if let [number] = numbers { Some(*number) } else { None }
    }
}

impl Exact for Option<f64> {
    fn numbers(&self) -> Vec<f64> {
        self.iter().copied().collect()
    }

    fn from_numbers(numbers: &[f64]) -> Option<Self> {
        if numbers.len() < 2 { Some(numbers.first().copied()) } else { None }
    }
}

impl Exact for (f64, f64) {
    fn numbers(&self) -> Vec<f64> {
        vec![self.0, self.1]
    }

    fn from_numbers(numbers: &[f64]) -> Option<Self> {
        if let [first, second] = numbers { Some((*first, *second)) } else { None }
    }
}

/// For serde's `with`.
pub(super) fn serialize<T: Exact, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    let texts: Vec<String> = value.numbers().iter().map(|number| format!("{number:?}")).collect();
    texts.join(" ").serialize(serializer)
}

/// For serde's `with`.
pub(super) fn deserialize<'de, T: Exact, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let text = String::deserialize(deserializer)?;
    let numbers: Option<Vec<f64>> = text.split_whitespace().map(|number| number.parse().ok()).collect();
    numbers
        .and_then(|numbers| T::from_numbers(&numbers))
        .ok_or_else(|| D::Error::custom(format!("{text:?} is not what was written")))
}
