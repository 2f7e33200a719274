//! Matrix products on the CPU: weights packed once, kernels chosen at run time, one thread pool.
//!
//! A packed weight is one memory layout that every instruction set reads, for many rows and for one. Each set has a
//! file of its own with the same small tiles; `scalar.rs` is the portable one and the reference in the tests. Nothing
//! here knows tensors or gradients: `kernels/linear.rs` does.
//!
//! Accuracy: products are added in f32, for every output element in the order of the input dimension. Which rows are
//! computed together, their number, and the number of threads never change a result; another instruction set may, in
//! the last bits. With AVX-512 BF16 (used where it is fast, see `Isa::best`), bf16 weights meet activations
//! rounded to bf16 (to nearest even), as in a bf16 model elsewhere; all other paths keep activations in f32.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod bf16_avx512;
mod matmul;
#[cfg(target_arch = "aarch64")]
mod neon;
mod pack;
pub mod pool;
mod product;
mod quant;
mod scalar;
pub(crate) mod scratch;
#[cfg(test)]
mod tests;
mod tile;
mod transpose;

use std::sync::OnceLock;

pub use pack::{Element, PackedMatrix};
pub use quant::{BlockFormat, PackedQuant};

/// The environment variable that forces an instruction set, by the names of [`Isa::name`].
pub const KERNEL_VARIABLE: &str = "CANDLEWICK_CPU_KERNEL";

/// A family of kernels, named after the instruction set it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// The same and AVX-VNNI, for eight-bit products.
    AvxVnni,
    /// AVX2 as above, AVX-512 F, BW, DQ and VL, and VNNI where there is any.
    Avx512,
    /// The same and AVX-512 BF16.
    Avx512Bf16,
    /// What every 64-bit ARM processor has.
    Neon,
    /// The same and the dot products of bytes.
    NeonDot,
}

impl Isa {
    const ALL: [Isa; 7] =
        [Isa::Scalar, Isa::Avx2, Isa::AvxVnni, Isa::Avx512, Isa::Avx512Bf16, Isa::Neon, Isa::NeonDot];

    /// The name that [`KERNEL_VARIABLE`] takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            Isa::Avx2 => "avx2",
            Isa::AvxVnni => "avxvnni",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Neon => "neon",
            Isa::NeonDot => "neondot",
        }
    }

    /// Whether this processor has the instructions.
    #[cfg(target_arch = "x86_64")]
    fn is_available(self) -> bool {
        use std::arch::is_x86_feature_detected as has;
        match self {
            Isa::Scalar => true,
            Isa::Avx2 => has!("avx2") && has!("fma") && has!("f16c"),
            Isa::AvxVnni => has!("avxvnni") && Isa::Avx2.is_available(),
            Isa::Avx512 => {
                let avx512 = has!("avx512f") && has!("avx512bw") && has!("avx512dq") && has!("avx512vl");
                avx512 && Isa::Avx2.is_available()
            }
            Isa::Avx512Bf16 => has!("avx512bf16") && Isa::Avx512.is_available(),
            Isa::Neon | Isa::NeonDot => false,
        }
    }

    /// Whether this processor has the instructions.
    #[cfg(target_arch = "aarch64")]
    fn is_available(self) -> bool {
        match self {
            Isa::Scalar | Isa::Neon => true,
            Isa::NeonDot => std::arch::is_aarch64_feature_detected!("dotprod"),
            _ => false,
        }
    }

    /// Whether this processor has the instructions.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn is_available(self) -> bool {
        self == Isa::Scalar
    }

    /// The families that this processor can run.
    pub fn available() -> impl Iterator<Item = Isa> {
        Self::ALL.into_iter().filter(|isa| isa.is_available())
    }

    /// The fastest of them here.
    fn best() -> Isa {
        // Intel's cores take two cycles and more for one bf16 product instruction, so twice as many f32 products get
        // through them; AMD's take one.
        let skip = if is_intel() { Some(Isa::Avx512Bf16) } else { None };
        Self::available().filter(|isa| Some(*isa) != skip).last().unwrap_or(Isa::Scalar)
    }

    /// The family in use: the fastest one, or the one that [`KERNEL_VARIABLE`] names. Decided at the first call.
    pub fn current() -> Isa {
        static CURRENT: OnceLock<Isa> = OnceLock::new();
        *CURRENT.get_or_init(|| {
            let Ok(name) = std::env::var(KERNEL_VARIABLE) else { return Self::best() };
            Self::available().find(|isa| isa.name() == name.trim()).unwrap_or_else(|| {
                let names: Vec<_> = Self::available().map(Isa::name).collect();
                let best = Self::best();
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

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    // SAFETY: every x86-64 processor has leaf 0 of this instruction.
    #[allow(unused_unsafe, reason = "safe to call since Rust 1.93")]
    let leaf = unsafe { std::arch::x86_64::__cpuid(0) };
    [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}
