//! Shell completions and man pages, generated from the definition of the command line.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_complete::Shell;

use super::{CliError, EXIT_CODES, SOCKET, command};

/// Section of the man pages: commands of administrators.
const SECTION: &str = "8";

/// Files that the pages name.
const FILES: [(&str, &str); 3] = [
    ("/etc/vifswitch/vifswitch.toml", "Configuration of the service; fragments are beside it in conf.d"),
    ("/var/lib/vifswitch/state.db", "State of the service"),
    (SOCKET, "Socket of the API, which the commands use"),
];

/// The arguments of `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// Shell to complete commands in
    #[arg(value_name = "SHELL")]
    shell: Shell,
    /// Write a file, named as the shell expects it, into this directory
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

/// The arguments of `man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Command to describe; default: the page that lists all commands
    #[arg(value_name = "COMMAND", conflicts_with = "directory")]
    command: Option<String>,
    /// Write the pages of all commands into this directory
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
}

impl Completions {
    /// Writes the file, or returns its text.
    pub fn run(&self) -> Result<String, CliError> {
        let mut command = command();
        let name = command.get_name().to_owned();
        match &self.directory {
            Some(directory) => {
                let made = fs::create_dir_all(directory);
                let made = made.and_then(|()| clap_complete::generate_to(self.shell, &mut command, name, directory));
                let path = made.map_err(|e| at(directory, &e))?;
                Ok(format!("{}\n", path.display()))
            }
            None => {
                let mut text = Vec::new();
                clap_complete::generate(self.shell, &mut command, name, &mut text);
                Ok(String::from_utf8_lossy(&text).into_owned())
            }
        }
    }
}

impl Man {
    /// Writes the pages, or returns the text of one.
    pub fn run(&self) -> Result<String, CliError> {
        let pages = pages();
        if let Some(directory) = &self.directory {
            fs::create_dir_all(directory).map_err(|e| at(directory, &e))?;
            let mut written = String::new();
            for page in &pages {
                let path = directory.join(page.file_name());
                fs::write(&path, page.render()?).map_err(|e| at(&path, &e))?;
                written += &format!("{}\n", path.display());
            }
            return Ok(written);
        }
        let wanted = self.command.as_ref().map_or("vifswitch".to_owned(), |name| format!("vifswitch-{name}"));
        let wanted = format!("{wanted}.{SECTION}");
        match pages.iter().find(|page| page.file_name() == wanted) {
            Some(page) => page.render(),
            None => {
                let name = self.command.as_deref().unwrap_or_default();
                let known: Vec<String> = command().get_subcommands().map(|of| of.get_name().to_owned()).collect();
                Err(CliError::Usage(format!("there is no command {name:?}; use one of {}", known.join(", "))))
            }
        }
    }
}

/// A man page: what the definition of the command line says, and the sections that are the same in all pages.
struct Page {
    of: Command,
    man: clap_mangen::Man,
}

/// One page of the program, and one of each command.
fn pages() -> Vec<Page> {
    let mut program = command().disable_help_subcommand(true);
    program.build();
    let page = |of: &Command| {
        let version = concat!("vifswitch ", env!("CARGO_PKG_VERSION"));
        let man = clap_mangen::Man::new(of.clone()).section(SECTION).source(version).manual("vifswitch");
        Page { of: of.clone(), man }
    };
    std::iter::once(&program).chain(program.get_subcommands()).map(page).collect()
}

impl Page {
    fn file_name(&self) -> String {
        self.man.get_filename()
    }

    fn render(&self) -> Result<String, CliError> {
        let mut text = Vec::new();
        self.write(&mut text).map_err(CliError::Output)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn write(&self, to: &mut Vec<u8>) -> io::Result<()> {
        self.man.render_title(to)?;
        self.man.render_name_section(to)?;
        self.man.render_synopsis_section(to)?;
        self.man.render_description_section(to)?;
        self.man.render_options_section(to)?;
        if self.of.has_subcommands() {
            self.man.render_subcommands_section(to)?;
        }
        section(to, "EXIT STATUS", EXIT_CODES.iter().map(|(code, meaning)| (code.to_string(), *meaning)))?;
        section(to, "FILES", FILES.iter().map(|(path, content)| ((*path).to_owned(), *content)))?;
        let others = if self.of.has_subcommands() { "" } else { "vifswitch(8), " };
        writeln!(to, ".SH \"SEE ALSO\"\n{others}/usr/share/doc/vifswitch/docs")
    }
}

/// Writes a section of terms and what they mean.
fn section<'a>(to: &mut Vec<u8>, title: &str, terms: impl Iterator<Item = (String, &'a str)>) -> io::Result<()> {
    writeln!(to, ".SH {title:?}")?;
    for (term, meaning) in terms {
        writeln!(to, ".TP\n\\fB{}\\fR\n{meaning}", term.replace('-', "\\-"))?;
    }
    Ok(())
}

fn at(path: &Path, error: &io::Error) -> CliError {
    CliError::Output(io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use clap::ValueEnum;

    use super::*;

    /// Each command with its long options.
    fn commands() -> Vec<(String, Vec<String>)> {
        let options = |of: &Command| of.get_arguments().filter_map(|of| of.get_long()).map(str::to_owned).collect();
        command().get_subcommands().map(|of| (of.get_name().to_owned(), options(of))).collect()
    }

    /// What a script completes behind a command.
    fn part_of<'t>(shell: Shell, text: &'t str, name: &str) -> Vec<&'t str> {
        let (begin, end) = match shell {
            Shell::Fish => {
                let of_command = format!("_using_subcommand {name}\"");
                return text.lines().filter(|line| line.contains(&of_command)).collect();
            }
            Shell::Bash => (format!("vifswitch__subcmd__{})", name.replace('-', "__subcmd__")), "        ;;"),
            Shell::Zsh => (format!("({name})"), ";;"),
            Shell::Elvish => (format!("&'vifswitch;{name}'= {{"), "        }"),
            _ => (format!("'vifswitch;{name}' {{"), "            break"),
        };
        // The first one in zsh is indented.
        text.lines().skip_while(|line| line.trim_start() != begin).take_while(|line| !line.starts_with(end)).collect()
    }

    #[test]
    fn each_command_and_option_has_completions_in_each_shell() {
        for shell in Shell::value_variants() {
            let text = Completions { shell: *shell, directory: None }.run().unwrap();
            for (name, options) in commands() {
                assert!(text.contains(&name), "{shell}: {name}");
                let part = part_of(*shell, &text, &name);
                for option in options {
                    // fish has `-l json`
                    let forms = [format!("--{option}"), format!("-l {option}")];
                    let is_there = part.iter().any(|line| forms.iter().any(|form| line.contains(form)));
                    assert!(is_there, "{shell}: {name} --{option}: {part:#?}");
                }
            }
        }
    }

    #[test]
    fn completions_are_written_to_the_file_that_the_shell_reads() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("new");
        for (shell, file) in
            [(Shell::Bash, "vifswitch.bash"), (Shell::Zsh, "_vifswitch"), (Shell::Fish, "vifswitch.fish")]
        {
            let said = Completions { shell, directory: Some(below.clone()) }.run().unwrap();
            assert_eq!(said, format!("{}\n", below.join(file).display()));
            let printed = Completions { shell, directory: None }.run().unwrap();
            assert_eq!(fs::read_to_string(below.join(file)).unwrap(), printed, "{shell}");
        }
        assert_eq!(fs::read_dir(&below).unwrap().count(), 3);
    }

    #[test]
    fn each_command_has_a_man_page_with_all_options() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("new/man8");
        let written = Man { command: None, directory: Some(below.clone()) }.run().unwrap();
        let names: BTreeSet<String> =
            fs::read_dir(&below).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        let expected: BTreeSet<String> = commands()
            .iter()
            .map(|(name, _)| format!("vifswitch-{name}.8"))
            .chain(["vifswitch.8".to_owned()])
            .collect();
        assert_eq!(names, expected);
        assert_eq!(written.lines().count(), names.len());
        let all = Man { command: None, directory: None }.run().unwrap();
        for (name, options) in commands() {
            let shown = name.replace('-', "\\-");
            assert!(all.contains(&format!("vifswitch\\-{shown}(8)")), "{name}: {all}");
            let page = Man { command: Some(name.clone()), directory: None }.run().unwrap();
            assert_eq!(page, fs::read_to_string(below.join(format!("vifswitch-{name}.8"))).unwrap());
            for option in options {
                // a hyphen that is no line break, as roff writes it
                let option = option.replace('-', "\\-");
                assert!(page.contains(&format!("\\-\\-{option}")), "{name} --{option}: {page}");
            }
            for section in
                ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "\"EXIT STATUS\"", "\"FILES\"", "\"SEE ALSO\""]
            {
                assert_eq!(page.matches(&format!(".SH {section}\n")).count(), 1, "{name}: {section}: {page}");
            }
        }
    }

    #[test]
    fn an_unknown_command_has_no_page() {
        let error = Man { command: Some("shew".into()), directory: None }.run().unwrap_err().to_string();
        assert!(error.contains("\"shew\"") && error.contains("show"), "{error}");
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_named() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let below = file.path().join("man8");
        let shell = Shell::Bash;
        for done in [
            Man { command: None, directory: Some(below.clone()) }.run(),
            Completions { shell, directory: Some(below.clone()) }.run(),
        ] {
            let error = done.unwrap_err().to_string();
            assert!(error.contains(below.to_str().unwrap()), "{error}");
        }
    }
}
