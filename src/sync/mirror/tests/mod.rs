//! Two real trees in temporary folders, and a look at them that shares nothing with the mirror.

mod faults;
mod kit;
mod trees;
mod watching;
mod words;
