//! The one integration test binary; each topic is a module.

mod chat_template;
mod checkpoint;
mod generate;
mod golden;
mod hub;
mod hub_server;
mod layering;
mod sampler;
mod tokenizer;
