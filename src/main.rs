//! `forerun`: the command line, the controller and, through `driver/node`, the node.

fn main() -> std::process::ExitCode {
    forerun::cli::main()
}
