//! What the help and the manual pages say beside the options: examples, and what exit codes mean.

/// What exit codes mean, in every command that does not say otherwise.
const EXIT_CODES: [(u8, &str); 9] = [
    (0, "done"),
    (1, "failed; compare: the disks differ; check: could not check; lint: something is wrong"),
    (64, "the arguments make no sense"),
    (65, "the image is corrupt"),
    (69, "refused: it is in use, or others depend on it"),
    (70, "a fault of this program"),
    (73, "no space left"),
    (75, "stopped at a clean point: the same command goes on"),
    (77, "refused: a foreign reference, or a parent that is not what it was"),
];

/// How check and compare end besides.
const MORE_CODES: &str =
    "check: 2 corrupt, 3 leaks only, 63 the format has nothing to check; compare: 2 could not compare";

/// How names of files stand in JSON.
const NAMES: &str = "In JSON a file's name that is not UTF-8 is `file:` and the name, with each byte that is no letter, \
                     digit or one of /._-~ as %XX.";

/// Lines that can be typed, by command.
const EXAMPLES: [(&str, &[&str]); 29] = [
    (
        "info",
        &[
            "dchain info --backing-chain vm.qcow2",
            "dchain info --output json vm.qcow2 | jq .format",
            "dchain info vm.ova",
        ],
    ),
    ("map", &["dchain map vm.qcow2"]),
    ("compare", &["dchain compare -f raw vm.raw -F qcow2 vm.qcow2"]),
    ("measure", &["dchain measure -O qcow2 vm.raw"]),
    ("check", &["dchain check --lineage vm.qcow2", "dchain check --repair leaks vm.qcow2"]),
    (
        "create",
        &["dchain create -f qcow2 vm.qcow2 20G", "dchain create -f qcow2 -b base.qcow2 -F qcow2 vm.qcow2"],
    ),
    (
        "convert",
        &[
            "dchain convert -O qcow2 -c vm.raw vm.qcow2",
            "dchain convert --chain -O qcow2 vm.qcow2 /srv/new",
            "dchain convert --chain -O vhdx vm/vm.vmx /srv/new",
            "dchain convert -O qcow2 --disk vmdisk2 vm.ova data.qcow2",
        ],
    ),
    ("resize", &["dchain resize vm.qcow2 +10G"]),
    ("compact", &["dchain compact vm.qcow2"]),
    ("bitmap", &["dchain bitmap --add vm.qcow2 backup", "dchain bitmap --list vm.qcow2"]),
    (
        "snapshot",
        &[
            "dchain snapshot monday.qcow2 tuesday.qcow2",
            "dchain snapshot --disk vm=tuesday.qcow2 --disk data",
        ],
    ),
    (
        "revert",
        &["dchain revert -n tuesday.qcow2 monday.qcow2", "dchain revert --disk vm --yes monday.qcow2"],
    ),
    ("rebase", &["dchain rebase -b golden.qcow2 -F qcow2 vm.qcow2"]),
    (
        "consolidate",
        &[
            "dchain consolidate -n vm.qcow2",
            "dchain consolidate --into monday.qcow2 --yes vm.qcow2",
            "dchain consolidate --disk vm",
        ],
    ),
    (
        "copy",
        &[
            "dchain copy vm.qcow2 /mnt/other",
            "dchain copy --remove-source --yes vm.qcow2 /mnt/other",
            "dchain copy vm.qcow2 ssh://me@host/srv/vm",
            "dchain copy ssh://host:2222/srv/vm/vm.qcow2 /mnt/other",
        ],
    ),
    (
        "send",
        &[
            "dchain send vm.qcow2 > /mnt/stick/vm.stream",
            "dchain send --have c1:0a1b2c3d4e5f vm.qcow2 | zstd > delta.zst",
        ],
    ),
    ("receive", &["dchain receive /srv/vm < /mnt/stick/vm.stream", "dchain receive --state /srv/vm"]),
    ("migrate", &["dchain migrate -n --disk vm /mnt/other", "dchain migrate --disk vm /mnt/other"]),
    ("unshare", &["dchain unshare -n vm.qcow2"]),
    ("rm", &["dchain rm -n monday.qcow2 tuesday.qcow2"]),
    ("relink", &["dchain relink -n /srv/vm", "dchain relink --map old.qcow2=new.qcow2 /srv/vm"]),
    ("repair", &["dchain repair base.qcow2 --from /backup/base.qcow2"]),
    ("id", &["dchain id show vm.qcow2", "dchain id seal --chain base.qcow2"]),
    ("tree", &["dchain tree /srv/vm", "dchain tree --output svg /srv/vm > vm.svg"]),
    ("lint", &["dchain lint /srv/vm"]),
    (
        "diff",
        &[
            "dchain diff monday.qcow2 tuesday.qcow2",
            "dchain diff --disk vm",
            "dchain diff --disk vm monday.qcow2",
        ],
    ),
    (
        "backup",
        &[
            "dchain backup begin --disk vm --disk data",
            "dchain backup begin --disk vm --disk data --since b1",
            "dchain backup end b2",
        ],
    ),
    ("disk", &["dchain disk list", "dchain disk attach vm=/srv/vm/tuesday.qcow2"]),
    ("job", &["dchain job wait --progress 3", "dchain job speed 3 100M"]),
];

fn examples(command: &str) -> &'static [&'static str] {
    EXAMPLES.iter().find(|(name, _)| *name == command).map_or(&[], |(_, lines)| lines)
}

/// Returns what the program's help ends with.
pub fn after() -> String {
    let lines = EXIT_CODES.iter().map(|(code, what)| format!("  {code:<3} {what}\n"));
    format!("Exit codes:\n{}  {MORE_CODES}\n\n{NAMES}", lines.collect::<String>())
}

/// Adds the examples to each command's help.
pub fn with_examples(command: clap::Command) -> clap::Command {
    EXAMPLES.iter().fold(command, |command, (name, lines)| {
        command.mut_subcommand(name, |one| one.after_help(format!("Examples:\n  {}", lines.join("\n  "))))
    })
}

/// Returns the sections of a command's manual page that its description has not: what exit codes mean, examples.
pub fn sections(command: &str) -> String {
    let codes = EXIT_CODES.iter().map(|(code, what)| format!(".TP\n\\fB{code}\\fR\n{what}\n"));
    let status = format!(".SH \"EXIT STATUS\"\n{}.PP\n{MORE_CODES}\n", codes.collect::<String>());
    let lines = examples(command).iter().map(|line| format!("{}\n", line.replace('-', "\\-")));
    match lines.collect::<String>() {
        none if none.is_empty() => status,
        lines => format!("{status}.SH EXAMPLES\n.nf\n{lines}.fi\n"),
    }
}
