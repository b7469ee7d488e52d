# Reads the output of the tests, of `cargo nextest run` or of `cargo test -- --show-output`, and prints, a line each and
# divided by tabs:
#
#     passed N, failed N, ignored N    numbers of tests
#     skipped NAME REASON              a test that reported a skip
#     panic NAME TEXT                  a test that passed although a thread of it panicked

BEGIN { OFS = "\t" }

# cargo-nextest: the test's line, before its output
/^ +(TRY [0-9]+ )?(PASS|FAIL|ABORT|SIGABRT|SIGSEGV|TIMEOUT|LEAK|FLAKY) \[/ {
    name = $NF
    is_passed = /^ +(PASS|LEAK) \[/
}
/^ +Summary \[/ {
    for (i = 1; i < NF; i++) {
        if ($(i + 1) ~ /^tests?$/ && $(i + 2) == "run:") run = $i
        if ($(i + 1) ~ /^passed/) passed = $i
    }
    print "passed", passed + 0
    if (run - passed > 0) print "failed", run - passed
}
# libtest: the test's line, before its output, and the result of a binary
/^(successes|failures):$/ { part = $1 }
/^---- .* ----$/ {
    name = $2
    is_passed = part == "successes:"
}
/^test result:/ {
    print "passed", $4
    if ($6 > 0) print "failed", $6
    if ($8 > 0) print "ignored", $8
}
/^ *skipped: / {
    sub(/^ *skipped: /, "")
    print "skipped", name, $0
}
is_passed && /^ *thread .* panicked at / {
    sub(/^ */, "")
    print "panic", name, $0
}
