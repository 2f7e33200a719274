//! Matrix products on the CPU: weights packed once, kernels chosen at run time, one thread pool.
//!
//! A packed weight is one memory layout that every instruction set reads, for many rows and for one. Each set has a
//! file of its own with the same small tiles; `scalar.rs` is the portable one and the reference in the tests. Nothing
//! here knows tensors or gradients: `kernels/linear.rs` does.
//!
//! Accuracy: products are added in f32, for every output element in the order of the input dimension. Which rows are
//! computed together, their number, and the number of threads never change a result; another instruction set may, in
//! the last bits. With AVX-512 BF16, bf16 weights meet activations rounded to bf16 (to nearest even), as in a bf16
//! model elsewhere; all other paths keep activations in f32.

#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod bf16_avx512;
mod matmul;
mod pack;
pub mod pool;
mod scalar;
pub(crate) mod scratch;
#[cfg(test)]
mod tests;
mod tile;
mod transpose;

use std::sync::OnceLock;

pub use pack::{Element, PackedMatrix};

/// The environment variable that forces an instruction set, by the names of [`Isa::name`].
pub const KERNEL_VARIABLE: &str = "CANDLEWICK_CPU_KERNEL";

/// A family of kernels, named after the instruction set it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust.
    Scalar,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// The same and AVX-512 BF16.
    Avx512Bf16,
}

impl Isa {
    /// Every family, slowest first.
    const ALL: [Isa; 3] = [Isa::Scalar, Isa::Avx512, Isa::Avx512Bf16];

    /// The name that [`KERNEL_VARIABLE`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether this processor has the instructions.
    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        let avx512 =
            || has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl") && has!("fma");
        match self {
            Isa::Scalar => true,
            Isa::Avx512 => avx512(),
            Isa::Avx512Bf16 => avx512() && has!("avx512bf16"),
        }
    }

    /// Whether this processor has the instructions.
    #[cfg(not(target_arch = "x86_64"))]
    fn is_available(self) -> bool {
        self == Isa::Scalar
    }

    /// The families that this processor can run, slowest first.
    pub fn available() -> impl Iterator<Item = Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The family in use: the fastest one, or the one that [`KERNEL_VARIABLE`] names. Decided at the first call.
    pub fn current() -> Isa {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let best = Self::available().last().unwrap_or(Isa::Scalar);
            let Ok(name) = std::env::var(KERNEL_VARIABLE) else { return best };
            Self::available().find(|isa| isa.name() == name.trim()).unwrap_or_else(|| {
                let names: Vec<_> = Self::available().map(Isa::name).collect();
                log::warn!(
                    "{KERNEL_VARIABLE}: got {name:?}, expected one of {} on this processor; using {}",
                    names.join(", "),
                    best.name()
                );
                best
            })
        })
    }
}
