//! The program: parse the command line, wire the parts, exit. No logic.

fn main() -> std::process::ExitCode {
    shadowvm::cli::main()
}
