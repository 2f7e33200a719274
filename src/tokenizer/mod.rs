//! Text to token ids and back, incremental decoding, and chat templates; knows no model.
