//! What plugs into a linear layer: LoRA and its relatives, their files, and the registry.
