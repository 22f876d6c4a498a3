//! What the tests of the lab share: a mesh of two nodes, ready to use.
