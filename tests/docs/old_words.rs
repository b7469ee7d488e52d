//! Identifiers use the field's terms: words of the project's former vocabulary do not return. Needs nothing of the
//! host.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Whole identifiers, case-sensitive, that may not occur in `src`, `tests` and `benches` outside comments and
/// strings.
const OLD_WORDS: &str = "
    breath breaths breathe inhale inhaled exhale Gate Gates gates Door Doors doors CarriedDoor SHUT pass_on take_in
    Branch branches Dressing Unfinishable Finishing Tally Books died_of SeenTo Parcel parcel parcels FOR_ONE
    Sighting sighting sightings Retell Finder Bell bells Pacer pacer is_tired NAP rouse deaf futile passed_by
    Gathering gathering COMPANY HEAVY Shed shed shedding mute_until SPARED Landing Nowhere is_here adopt surrender
    surrender_to go_home Filling think Fate most_at_once is_cheap_to_ask Abilities abilities Whereabouts furnish
    has_outgrown Rung rung climb mouth ear ears Ear Ears has_stopped suspicious Inward Outward hand_over Question
    questions examine glance knows Audience Watchers curious incurious Stretch CarrierRules Carried carried judge
    Judge judged Judged splits shares_mac is_picky Pack Packs pack packs Claim sieve put_apart FOR_GOOD yield_place
    tidy broom SWEEP Mover Movers mover Ruling ruling is_of_the_wire Moment Secret Seat seat seats Stand stand By
    blueprint Staff staff Keeper keeper Leftover Leftovers leftovers swept Errand errand Attempted Writing Written
    WrittenChange heed Looked Heard Refusal refusal Blame blame Desk desk turnstile Turnstile lingering LINGERING
    knock Containment containment tell_news Keeping Ladder ladder prolonged Prolonged hushed Split Junction
    junction Around Bridged Spell spell CALM Freeze Freezes freeze freezes freezing Frozen frozen beyond MEANING
    Parted parted Town town Witness witness Dice dice scenery Scenery Rig rig Hands House house Kept Meant meant
    way_back told Told unlearned sightings_lost takeover freeze_seconds mac_freeze frozen_source tell hear lend
    lose
";

/// Words that are not listed, each with its meaning in the field.
const LEFT_OUT: [(&str, &str); 15] = [
    ("carrier", "the state of a link: IFF_LOWER_UP"),
    (
        "bucket queue ring slot batch burst pool flood probe verdict port subport trunk uplink station",
        "terms of the field",
    ),
    ("exchange", "two sides of a test exchange data"),
    ("journal", "SQLite's rollback journal"),
    ("Lent Owned", "kinds of receive memory"),
    ("Directory", "a directory of the file system"),
    ("strategy", "Strategy of proptest"),
    ("line lines", "a line of text, or of the processor's cache"),
    ("link links", "a netdev (rtnetlink), or a linked list"),
    (
        "pair end path place position address name names report pending owner home",
        "ordinary words with their ordinary meaning",
    ),
    (
        "pass note see look ask held seen sent heard left over most least there all",
        "verbs and small words, as names of locals",
    ),
    ("suppressed", "`unknown_unicast = \"suppress\"`; errors and events that a limit leaves out"),
    ("standby", "the second uplink of a group: active and standby"),
    ("siblings", "ports of one VM on one network"),
    ("guard", "a value that undoes something when it is dropped"),
];

/// Identifiers of a source text, outside comments, strings and character literals.
fn identifiers(text: &str) -> BTreeSet<String> {
    let text: Vec<char> = text.chars().collect();
    let at = |index: usize| text.get(index).copied().unwrap_or('\0');
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    let mut i = 0;
    while i < text.len() {
        match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < text.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            ('"', _) => {
                i += 1;
                while i < text.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            ('r', '"' | '#') if i == 0 || !is_part(at(i - 1)) || at(i - 1) == 'b' => {
                let hashes = text[i + 1..].iter().take_while(|&&c| c == '#').count();
                i += 1 + hashes;
                if at(i) == '"' {
                    let is_end = |i: usize| at(i) == '"' && (1..=hashes).all(|n| at(i + n) == '#');
                    i += 1;
                    while i < text.len() && !is_end(i) {
                        i += 1;
                    }
                    i += 1 + hashes;
                }
            }
            // a character literal, not a lifetime
            ('\'', '\\') => {
                i += 3;
                while i < text.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            ('\'', _) if at(i + 2) == '\'' => i += 3,
            (c, _) if is_part(c) => {
                let word: String = text[i..].iter().copied().take_while(|&c| is_part(c)).collect();
                // a string prefix
                i += if matches!((word.as_str(), at(i + 2)), ("br", '"' | '#')) { 1 } else { word.chars().count() };
                found.insert(word);
            }
            _ => i += 1,
        }
    }
    found
}

#[test]
fn old_words_do_not_return() {
    let old: BTreeSet<String> = OLD_WORDS.split_whitespace().map(str::to_owned).collect();
    let mut folders: Vec<_> = ["src", "tests", "benches"].map(|folder| super::root().join(folder)).into();
    let (mut files, mut wrong) = (0, Vec::new());
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "rs") {
                let words = identifiers(&fs::read_to_string(&path).unwrap());
                let path = path.strip_prefix(super::root()).unwrap_or(Path::new("")).display().to_string();
                wrong.extend(words.intersection(&old).map(|word| format!("{path}: {word}")));
                files += 1;
            }
        }
    }
    assert!(files > 200, "only {files} files");
    assert!(wrong.is_empty(), "say it in the terms of docs/glossary.md, or of the field:\n{}", wrong.join("\n"));
}

#[test]
fn words_that_are_left_out_are_not_listed() {
    let old: BTreeSet<&str> = OLD_WORDS.split_whitespace().collect();
    let both: Vec<_> =
        LEFT_OUT.iter().flat_map(|(words, _)| words.split_whitespace()).filter(|word| old.contains(word)).collect();
    assert!(both.is_empty(), "both listed and left out: {both:?}");
}

#[test]
fn identifiers_are_found_outside_of_comments_and_strings() {
    let text = "let a = 'x'; // b\nlet c: &'d str = \"e \\\" f\"; g(r#\"h\"#, b'\"', '\\'', br\"i\"); j";
    let found = identifiers(text);
    for word in ["a", "c", "d", "g", "j"] {
        assert!(found.contains(word), "{word}");
    }
    for word in ["e", "f", "h", "i", "x"] {
        assert!(!found.contains(word), "{word}");
    }
}
