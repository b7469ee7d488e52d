//! SIGTERM, SIGINT and SIGHUP end or reload the switch in time, whatever is going on.
