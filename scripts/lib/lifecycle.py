"""The life of the Debian package, for scripts/package --test. In a box, as root.

    scripts/lib/box lifecycle.py FIRST.deb LATER.deb VERSION

LATER is the package of the same tree with the higher version VERSION. Installs FIRST, upgrades it under traffic, downgrades it,
kills the switch, removes the package, installs it again and purges it. Prints one line for each check, and ends with the first
that fails.
"""

import grp
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

from service import API, CONFIG, TAPS, UNIT, Service, Watch, await_that, configuration, judge, make_spaces, run, succeeds

STATE = Path("/var/lib/vifswitch")
FILES = (
    "/usr/bin/vifswitch",
    "/etc/vifswitch/vifswitch.toml",
    "/lib/systemd/system/vifswitch.service",
    "/usr/lib/sysusers.d/vifswitch.conf",
    "/usr/share/man/man8/vifswitch.8.gz",
    "/usr/share/man/man8/vifswitch-run.8.gz",
    "/usr/share/bash-completion/completions/vifswitch",
    "/usr/share/zsh/vendor-completions/_vifswitch",
    "/usr/share/fish/vendor_completions.d/vifswitch.fish",
    "/usr/share/doc/vifswitch/README.md",
    "/usr/share/doc/vifswitch/copyright",
    "/usr/share/doc/vifswitch/docs/operating.md",
)
# What a purge leaves: records of dpkg, systemd and of the tools for users, none of them of this package; temporary files of
# the host.
RECORDS = (
    "/var/lib/dpkg/", "/var/log/", "/var/cache/", "/var/lib/systemd/", "/var/tmp/", "/etc/passwd-", "/etc/shadow-",
    "/etc/group-", "/etc/gshadow-", "/etc/.pwd.lock", "/etc/subuid-", "/etc/subgid-",
)

service = Service()


def holds(what, is_so, why=""):
    print(f"   {'ok   ' if is_so else 'FAIL '} {what}", flush=True)
    if not is_so:
        print("\n".join(service.log().splitlines()[-30:]), file=sys.stderr)
        sys.exit(f"check failed: {what}{f': {why}' if why != '' else ''}")


def title(text):
    print(f"\n== {text}", flush=True)


def dpkg(*arguments):
    """Runs dpkg, and returns its output."""
    return run("dpkg", *arguments)


def paths():
    """All files of the system, but for those in memory."""
    found = run("find", "/etc", "/usr", "/var", "/lib/systemd", "-xdev", check=False).splitlines()
    return {path for path in found if not path.startswith(RECORDS)}


def starts():
    """How often systemd has started it."""
    run("journalctl", "--sync")
    return sum(line.startswith(f"Started {UNIT}") for line in service.log().splitlines())


def is_enabled():
    return run("systemctl", "is-enabled", UNIT, check=False).strip()


def version():
    return run("/usr/bin/vifswitch", "--version").strip().removeprefix("vifswitch ")


def user_exists():
    names = [entry.pw_name for entry in pwd.getpwall()] + [entry.gr_name for entry in grp.getgrall()]
    return "vifswitch" in names


def complete(expected_version):
    """The package is installed as a whole, and the service runs."""
    changed = run("dpkg", "--verify", "vifswitch", check=False)
    # the configuration may be edited
    holds("dpkg --verify finds no changed file", not [line for line in changed.splitlines() if "/etc/" not in line], changed)
    holds(f"the binary is of version {expected_version}", version() == expected_version, version())
    holds("the service is active and enabled", service.show("ActiveState") == "active" and is_enabled() == "enabled", is_enabled())
    holds("nothing has restarted it but the package", service.show("NRestarts") == "0", service.show("NRestarts"))
    failed = run("systemctl", "--failed", "--no-legend", "--plain")
    holds("no unit has failed", failed == "", failed)


def under_traffic(what, step):
    """Runs a step while frames flow: none is lost, and the process is replaced once."""
    before, ready, watch = service.pid(), starts(), Watch()
    print("".join(f"         {line}\n" for line in step().splitlines()), end="")
    judge(what, watch.end())
    holds("the process was replaced once", service.pid() not in (0, before) and starts() == ready + 1, f"{ready} starts became {starts()}")
    service.await_ports()


def install(first, first_version):
    title("Install")
    holds("neither unit nor user exists", is_enabled() != "enabled" and not user_exists())
    dpkg("--install", first)
    contents = dpkg("--listfiles", "vifswitch").splitlines()
    missing = [path for path in FILES if path not in contents or not os.path.exists(path)]
    holds(f"{len(contents)} files are installed", not missing, missing)
    conffiles = run("dpkg-query", "--show", "--showformat", "${Conffiles}", "vifswitch").split()
    holds("the configuration is a conffile, the only one", conffiles[0::2] == [str(CONFIG)], conffiles)
    await_that("the socket of the API", lambda: os.path.exists(API))
    socket = os.stat(API)
    group = grp.getgrnam("vifswitch")
    holds("the API's socket belongs to the group", (socket.st_gid, stat.S_IMODE(socket.st_mode)) == (group.gr_gid, 0o660))
    holds("the state belongs to the user", STATE.stat().st_uid == pwd.getpwnam("vifswitch").pw_uid)
    process = os.stat(f"/proc/{service.pid()}").st_uid
    holds("the switch is no process of root", process == pwd.getpwnam("vifswitch").pw_uid, process)
    complete(first_version)
    # as root it reports that root, without the rights to do all, cannot write what belongs to the user
    checked = run("runuser", "-u", "vifswitch", "--", "vifswitch", "check", str(CONFIG), check=False)
    holds("the default configuration is valid", "valid: 0 networks" in checked and len(checked.splitlines()) < 4, checked)
    holds("the man pages are found", all(succeeds("man", "--where", page) for page in ("vifswitch", "vifswitch-attach")))
    holds("a member of the group may use the API", succeeds("setpriv", "--reuid=nobody", "--regid=vifswitch", "--clear-groups",
                                                            "vifswitch", "show", "ports"))
    holds("others may not", not succeeds("setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "vifswitch", "show", "ports"))


def pages_render():
    """Man pages are rendered without a warning, and their lines fit a terminal."""
    pages = sorted(Path("/usr/share/man/man8").glob("vifswitch*.8.gz"))
    wrong = []
    for page in pages:
        done = subprocess.run(
            ("man", "--warnings", "--local-file", str(page)),
            capture_output=True, text=True, env=os.environ | {"MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MANPAGER": "cat"},
        )
        wrong += [f"{page.name}: {line}" for line in done.stderr.splitlines()]
        wrong += [f"{page.name}: {line}" for line in done.stdout.splitlines() if len(line) > 80]
        if "SYNOPSIS" not in done.stdout or "EXIT STATUS" not in done.stdout:
            wrong.append(f"{page.name}: a section is missing")
    holds(f"{len(pages)} man pages are rendered without a warning", len(pages) > 15 and not wrong, wrong)


def completions_work():
    """An interactive bash completes commands and options."""
    script = (
        "source /usr/share/bash-completion/completions/vifswitch; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
        '_vifswitch vifswitch "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    for words, expected in (("vifswitch att", "attach"), ("vifswitch show --so", "--socket"), ("vifswitch completions f", "fish")):
        offered = run("bash", "-c", script.format(words=words)).split()
        holds(f"bash completes \"{words}\" to {expected}", expected in offered, offered)


def configure():
    title("Ports")
    make_spaces()
    CONFIG.write_text(configuration())
    run("systemctl", "restart", UNIT)
    service.await_ports()
    holds("three ports forward", True)


def upgrade(first, later, first_version, later_version):
    title("Upgrade, under traffic")
    under_traffic("the upgrade", lambda: dpkg("--install", later))
    complete(later_version)
    holds("the edited configuration stays", CONFIG.read_text() == configuration())
    title("Downgrade, under traffic")
    under_traffic("the downgrade", lambda: dpkg("--install", first))
    complete(first_version)
    title("The same version again, under traffic")
    under_traffic("the installation", lambda: dpkg("--install", first))
    title("kill -9, under traffic")
    before, watch = service.pid(), Watch()
    service.restart(signal.SIGKILL)
    judge("kill -9", watch.end(), True)
    holds("systemd has started it again", service.pid() != before and service.show("NRestarts") == "1")
    service.await_ports()


def refused(later):
    title("Upgrade with a configuration that the new version refuses")
    CONFIG.write_text(configuration() + "no_such_key = 1\n")
    before, watch = service.pid(), Watch()
    output = dpkg("--install", later)
    judge("the upgrade", watch.end())
    holds("the running switch goes on, and the reason is printed", service.pid() == before and "no_such_key" in output, output)
    CONFIG.write_text(configuration())
    run("systemctl", "restart", UNIT)
    service.await_ports()


def disabled(first):
    title("Downgrade of a service that is disabled and stopped")
    run("systemctl", "disable", "--now", UNIT)
    dpkg("--install", first)
    holds("it stays so", service.show("ActiveState") == "inactive" and is_enabled() == "disabled", is_enabled())
    run("systemctl", "enable", "--now", UNIT)
    service.await_ports()


def remove(first):
    title("Remove")
    process = service.pid()
    dpkg("--remove", "vifswitch")
    holds("the switch has ended", not os.path.exists(f"/proc/{process}"))
    taps = [tap for tap, space in TAPS.items() if succeeds("ip", "-n", space, "link", "show", tap)]
    holds("its taps are gone", not taps, taps)
    there = [path for path in FILES if path != str(CONFIG) and os.path.exists(path)]
    holds("its files are gone", not there, there)
    holds("configuration and state stay", CONFIG.read_text() == configuration() and (STATE / "state.db").exists())
    failed = run("systemctl", "--failed", "--no-legend", "--plain")
    holds("no unit has failed", failed == "", failed)
    title("Install again")
    dpkg("--install", first)
    service.await_ports()
    holds("all ports forward again", is_enabled() == "enabled", is_enabled())


def purge(before):
    title("Purge")
    Path("/etc/vifswitch/probe.key").write_text("of the administrator\n")
    dpkg("--purge", "vifswitch")
    after = paths()
    holds("no file is left", not after - before, sorted(after - before))
    holds("no file of the system is missing", not before - after, sorted(before - after))
    holds("the user and its group are gone", not user_exists())
    holds("nothing is left in /run", not os.path.exists("/run/vifswitch"))
    links = [str(path) for path in Path("/etc/systemd").rglob("*vifswitch*")] + [
        str(path) for path in Path("/var/lib/systemd").rglob("*vifswitch*")
    ]
    holds("systemd knows nothing of it", not links and service.show("LoadState") == "not-found", links)
    listed = subprocess.run(("dpkg-query", "--show", "vifswitch"), capture_output=True, text=True)
    holds("dpkg knows nothing of it", listed.returncode != 0, listed.stdout)


def main():
    first, later, later_version = sys.argv[1:]
    first_version = run("dpkg-deb", "--field", first, "Version").strip().rsplit("-", 1)[0]
    holds(f"{later_version} is a higher version than {first_version}",
          succeeds("dpkg", "--compare-versions", first_version, "lt", later_version))
    # What was installed by hand on this host is not part of the life of a package.
    shutil.rmtree("/var/lib/vifswitch", ignore_errors=True)
    before = paths()
    install(first, first_version)
    pages_render()
    completions_work()
    configure()
    upgrade(first, later, first_version, later_version)
    refused(later)
    disabled(first)
    remove(first)
    purge(before)
    print("\nThe package lived and is gone.")


if __name__ == "__main__":
    main()
