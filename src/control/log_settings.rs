//! Format and levels of the log. The format is fixed at start; levels can be changed while the switch runs.

use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::info;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{Registry, reload};
use utoipa::ToSchema;

/// Maximum length of levels in bytes.
const LONGEST: usize = 1024;

/// Levels, and their names.
const LEVELS: &[(&str, LevelFilter)] = &[
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];

/// The module that contains all others: the target of their messages begins with it.
const ROOT: &str = "vifswitch";

/// Format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// Lines of `key=value`.
    Logfmt,
    /// A JSON object per line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<LogFormat, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "logfmt" => Ok(LogFormat::Logfmt),
            "json" => Ok(LogFormat::Json),
            _ => Err("unknown format; use text, logfmt or json".to_owned()),
        }
    }
}

/// Levels of the log: messages below that of their module are not logged.
#[derive(Debug, Clone, PartialEq)]
pub struct LogLevel {
    text: String,
    targets: Targets,
}

impl Default for LogLevel {
    fn default() -> LogLevel {
        LogLevel { text: "info".to_owned(), targets: Targets::new().with_default(LevelFilter::INFO) }
    }
}

impl LogLevel {
    /// The filter.
    pub fn targets(&self) -> Targets {
        self.targets.clone()
    }
}

impl std::fmt::Display for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for LogLevel {
    type Err = String;

    /// Parses a level, or a list of levels of modules: `info,vifswitch::control::api=debug`.
    fn from_str(text: &str) -> Result<LogLevel, String> {
        if text.len() > LONGEST {
            return Err(format!("{} bytes long; use at most {LONGEST}", text.len()));
        }
        let mut of_all = None;
        let mut targets = Targets::new();
        for part in text.split(',').map(str::trim) {
            let (module, level) = part.split_once('=').map_or((None, part), |(module, level)| (Some(module), level));
            let Some(&(_, level)) = LEVELS.iter().find(|(name, _)| *name == level) else {
                return Err(format!(
                    "invalid level {level:?}; use off, error, warn, info, debug or trace, for all modules or as \
                     {ROOT}::control::api=debug for one"
                ));
            };
            match module {
                Some(module)
                    if module == ROOT || module.strip_prefix(ROOT).is_some_and(|rest| rest.starts_with("::")) =>
                {
                    targets = targets.with_target(module, level);
                }
                Some(module) => {
                    return Err(format!("no module {module:?}; modules begin with {ROOT}, as in {ROOT}::control::api"));
                }
                None if of_all.is_some() => return Err("more than one level for all modules; use one".to_owned()),
                None => of_all = Some(level),
            }
        }
        let targets = targets.with_default(of_all.unwrap_or(LevelFilter::INFO));
        Ok(LogLevel { text: text.trim().to_owned(), targets })
    }
}

/// The filter of a running log.
pub type LogFilter = reload::Handle<Targets, Registry>;

/// Format and levels of the log. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct LogSettings(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    format: LogFormat,
    level: Mutex<LogLevel>,
    /// `None`: there is no log, as in tests.
    filter: Option<LogFilter>,
}

impl LogSettings {
    /// Those of the log with this filter.
    pub fn new(format: LogFormat, level: LogLevel, filter: LogFilter) -> LogSettings {
        LogSettings(Arc::new(Shared { format, level: Mutex::new(level), filter: Some(filter) }))
    }

    /// The format.
    pub fn format(&self) -> LogFormat {
        self.0.format
    }

    /// The levels.
    pub fn level(&self) -> LogLevel {
        self.0.level.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the levels.
    pub fn set_level(&self, level: LogLevel) -> Result<(), String> {
        let mut now = self.0.level.lock().unwrap_or_else(PoisonError::into_inner);
        if *now == level {
            return Ok(());
        }
        info!("the log level changes from {now} to {level}");
        if let Some(filter) = &self.0.filter {
            filter.reload(level.targets()).map_err(|why| format!("the log level cannot be changed: {why}"))?;
        }
        *now = level;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn levels_are_of_all_modules_or_of_one() {
        let passes = |text: &str, target: &str, level: Level| {
            text.parse::<LogLevel>().unwrap().targets().would_enable(target, &level)
        };
        let api = "vifswitch::control::api";
        assert!(passes("info", api, Level::INFO) && !passes("info", api, Level::DEBUG));
        assert!(!passes("off", api, Level::ERROR) && passes("trace", api, Level::TRACE));
        let mixed = "warn, vifswitch::control::api=debug";
        assert!(passes(mixed, "vifswitch::control::api::body", Level::DEBUG));
        assert!(!passes(mixed, "vifswitch::control::state", Level::INFO));
        assert!(passes("vifswitch::daemon=off", api, Level::INFO), "other modules stay at info");
        assert!(!passes("vifswitch::daemon=off", "vifswitch::daemon", Level::ERROR));
        assert_eq!(mixed.parse::<LogLevel>().unwrap().to_string(), mixed);
    }

    #[test]
    fn a_level_that_would_do_nothing_is_refused() {
        for (text, why) in [
            ("", "use off, error"),
            ("loud", "\"loud\""),
            ("INFO", "\"INFO\""),
            ("info,debug", "more than one"),
            ("info,", "\"\""),
            ("api=debug", "begin with vifswitch"),
            ("vifswitches=debug", "begin with vifswitch"),
            ("vifswitch::control", "\"vifswitch::control\""),
            ("[span]=debug", "begin with vifswitch"),
            (&"vifswitch=info,".repeat(100), "at most 1024"),
        ] {
            let error = text.parse::<LogLevel>().unwrap_err();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_level_can_be_changed() {
        let (_layer, filter) = reload::Layer::new(LogLevel::default().targets());
        let log = LogSettings::new(LogFormat::Json, LogLevel::default(), filter.clone());
        log.set_level("debug".parse().unwrap()).unwrap();
        assert_eq!(log.clone().level().to_string(), "debug");
        assert_eq!(filter.clone_current(), Some("debug".parse::<LogLevel>().unwrap().targets()));
        assert_eq!(log.format(), LogFormat::Json);
    }
}
