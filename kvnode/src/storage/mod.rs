//! Data directories: the engine on disk behind the core's [`Store`](kvnode_core::store::Store), who owns a directory, whose data was
//! in it and in what format.

mod aside;
mod ballast;
pub mod damaged;
pub mod dir;
pub mod durable;
mod error;
mod format;
pub mod identity;
pub mod opening;
pub mod probe;
mod sync_mark;
mod whole;
