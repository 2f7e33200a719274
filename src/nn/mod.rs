//! Parts of a transformer, composed by the family files in `models`; knows no model name.
