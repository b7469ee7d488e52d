//! The program: see [`vifswitch::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    vifswitch::cli::main()
}
