//! `forerun`: the command line, the controller and, through `driver/node`, the node.
fn main() {}
