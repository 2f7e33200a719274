//! Element types of GGUF tensors, by their numbers.

use crate::weight::Format;

/// Number, name, and how this crate calls it; `None` where it cannot be read.
const TYPES: [(u32, &str, Option<Format>); 36] = [
    (0, "F32", Some(Format::F32)),
    (1, "F16", Some(Format::F16)),
    (2, "Q4_0", Some(Format::Q4_0)),
    (3, "Q4_1", Some(Format::Q4_1)),
    (6, "Q5_0", Some(Format::Q5_0)),
    (7, "Q5_1", Some(Format::Q5_1)),
    (8, "Q8_0", Some(Format::Q8_0)),
    (9, "Q8_1", None),
    (10, "Q2_K", Some(Format::Q2K)),
    (11, "Q3_K", Some(Format::Q3K)),
    (12, "Q4_K", Some(Format::Q4K)),
    (13, "Q5_K", Some(Format::Q5K)),
    (14, "Q6_K", Some(Format::Q6K)),
    (15, "Q8_K", Some(Format::Q8K)),
    (16, "IQ2_XXS", None),
    (17, "IQ2_XS", None),
    (18, "IQ3_XXS", None),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", Some(Format::IQ4NL)),
    (21, "IQ3_S", None),
    (22, "IQ2_S", None),
    (23, "IQ4_XS", None),
    (24, "I8", Some(Format::I8)),
    (25, "I16", None),
    (26, "I32", Some(Format::I32)),
    (27, "I64", Some(Format::I64)),
    (28, "F64", Some(Format::F64)),
    (29, "IQ1_M", None),
    (30, "BF16", Some(Format::BF16)),
    (31, "Q4_0_4_4", None),
    (32, "Q4_0_4_8", None),
    (33, "Q4_0_8_8", None),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (39, "MXFP4", Some(Format::MXFP4)),
    (40, "NVFP4", None),
];

pub(super) fn format_of(number: u32) -> Result<Format, String> {
    match TYPES.iter().find(|(n, ..)| *n == number) {
        Some((.., Some(format))) => Ok(*format),
        Some((_, name, None)) => {
            Err(format!("is stored as {name}, which is not supported; supported: {}", supported()))
        }
        None => Err(format!("has the unknown type {number}; supported: {}", supported())),
    }
}

pub(super) fn number_of(format: Format) -> Option<u32> {
    TYPES.iter().find(|(.., f)| *f == Some(format)).map(|(number, ..)| *number)
}

fn supported() -> String {
    let names: Vec<&str> = TYPES.iter().filter(|(.., f)| f.is_some()).map(|(_, name, _)| *name).collect();
    names.join(", ")
}
