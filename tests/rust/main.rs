//! The one integration test binary; each topic is a module.

mod adapter;
mod allocations;
mod chat_template;
mod checkpoint;
mod device;
mod embed;
mod fixtures;
mod generate;
mod gguf;
mod gguf_malformed;
mod gguf_model;
mod golden;
mod hub;
mod hub_server;
mod kernels;
mod layering;
mod mutations;
mod quantize;
mod sampler;
mod save;
mod tokenizer;
mod train;
mod train_data;
