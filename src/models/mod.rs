//! One file per family, the list of architectures, and the loaded model handle.
