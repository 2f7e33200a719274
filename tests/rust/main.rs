//! The one integration test binary; each topic is a module.

mod checkpoint;
mod generate;
mod golden;
mod hub;
mod hub_server;
mod layering;
mod sampler;
