//! Files on disk or on the hub, read as named tensors; knows no architecture.
