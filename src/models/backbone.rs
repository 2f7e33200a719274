//! What every stack of layers does, whichever way its attention looks.

use candle_core::Tensor;

use crate::Result;
use crate::nn::{Decoder, Encoder, Linear, Pass};

/// From token ids to final hidden states.
pub trait Backbone: std::fmt::Debug + Send + Sync {
    /// Final hidden states of all tokens of the pass: `[tokens, hidden]`.
    fn hidden_states(&self, pass: &mut Pass) -> Result<Tensor>;
    /// The linear layers in order, without a head.
    fn linears<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear));
}

impl Backbone for Decoder {
    fn hidden_states(&self, pass: &mut Pass) -> Result<Tensor> {
        let mut x = self.embed(pass)?;
        for layer in 0..self.num_layers() {
            x = self.layer(layer, &x, pass)?;
        }
        self.finish(&x)
    }

    fn linears<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        Decoder::linears(self, visit);
    }
}

impl Backbone for Encoder {
    fn hidden_states(&self, pass: &mut Pass) -> Result<Tensor> {
        Encoder::hidden_states(self, pass)
    }

    fn linears<'a>(&'a self, visit: &mut dyn FnMut(&'a Linear)) {
        Encoder::linears(self, visit);
    }
}
