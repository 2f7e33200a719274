//! The one integration test binary; each topic is a module.

mod checkpoint;
mod hub;
mod hub_server;
mod layering;
mod sampler;
