//! The protocol, as a pure state machine. See the module docs below for the path of a request.

pub mod causal;
pub mod clock;
pub mod request;
