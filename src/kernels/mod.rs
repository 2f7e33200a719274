//! Numeric operations that need speed or a gradient; the only room with device code and `unsafe`.
//!
//! It knows no model and no file format. Each op's file holds, in order: the public function, which picks a fused
//! or a reference implementation; `reference`, in plain differentiable tensor ops; the custom op; its tests.

pub mod add;
pub mod attention;
pub mod cpu;
pub mod cross_entropy;
pub mod decoded;
pub mod gated_act;
pub mod given;
pub mod layer_norm;
pub mod linear;
pub mod lora;
#[cfg(feature = "metal")]
mod metal;
pub mod rms_norm;
pub mod rope;
mod rows;
mod simd;
#[cfg(test)]
pub(crate) mod testing;
