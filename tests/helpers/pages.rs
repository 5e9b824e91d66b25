//! Makes man pages and completions from the one table of options: `pages DIR`, for `tools/pages`.
//!
//! They are as the executable of the same source understands its line, because it is the same table; nothing of this is in it, and nothing
//! is installed: who packages floe copies DIR/man/*.1 and DIR/completions/* where they belong.

use std::fmt::Write as _;
use std::path::Path;

use floe::help::{VERBS, Verb, golden};
use floe::options::{self, Owner, Row, Takes};

fn main() -> std::io::Result<()> {
    let Some(folder) = std::env::args_os().nth(1) else {
        eprintln!("usage: pages DIR");
        std::process::exit(2);
    };
    let folder = Path::new(&folder);
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    std::fs::create_dir_all(&man)?;
    std::fs::create_dir_all(&completions)?;
    std::fs::write(man.join("floe.1"), overview())?;
    for verb in VERBS {
        std::fs::write(man.join(format!("floe-{}.1", verb.name)), page(verb))?;
    }
    std::fs::write(completions.join("floe.bash"), bash())?;
    std::fs::write(completions.join("_floe"), zsh())?;
    std::fs::write(completions.join("floe.fish"), fish())
}

/// Rows that `verb` takes and people are shown, each name once, with the heading where a section begins.
fn rows(verb: &str, wanted: &[Owner]) -> Vec<(Option<&'static str>, Row)> {
    let mut found = Vec::new();
    let mut heading = None;
    let mut seen: Vec<&str> = Vec::new();
    for row in options::rows() {
        if row.heading().is_some() {
            heading = row.heading();
            continue;
        }
        let is_wanted = row
            .owner_for(verb)
            .is_some_and(|taken| wanted.contains(&taken));
        if is_wanted && !row.help.is_empty() && !row.names().any(|name| seen.contains(&name)) {
            seen.extend(row.names());
            found.push((heading.take(), row));
        }
    }
    found
}

const ALL: &[Owner] = &[Owner::Here, Owner::HandedOn, Owner::Common];

// ---- man(7) -----------------------------------------------------------------------------------------------------------

/// Text for man(7): nothing in it is a request.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-");
    let text = text.replace('\u{2026}', "...").replace('\u{d7}', "x");
    match text.starts_with(['.', '\'']) {
        true => format!("\\&{text}"),
        false => text,
    }
}

/// Paragraphs; what begins with a space stands as it is.
fn prose(out: &mut String, text: &str) {
    let mut literal = false;
    for line in text.lines() {
        let is_literal = line.starts_with(' ');
        if is_literal != literal {
            out.push_str(if is_literal {
                ".PP\n.RS 4\n.nf\n"
            } else {
                ".fi\n.RE\n"
            });
            literal = is_literal;
        }
        match line {
            "" => out.push_str(".PP\n"),
            line => {
                let _ = writeln!(out, "{}", escaped(line.trim_start()));
            }
        }
    }
    if literal {
        out.push_str(".fi\n.RE\n");
    }
}

fn options(out: &mut String, verb: &str, wanted: &[Owner]) {
    for (heading, row) in rows(verb, wanted) {
        if let Some(heading) = heading {
            let _ = writeln!(out, ".SS {}", escaped(heading.trim_end_matches(':')));
        }
        let names: Vec<&str> = row.names().collect();
        let _ = writeln!(
            out,
            ".TP\n\\fB{}\\fR{}",
            escaped(&names.join(", ")),
            escaped(row.value)
        );
        let _ = writeln!(out, "{}", escaped(row.help));
    }
}

fn head(out: &mut String, name: &str, line: &str) {
    let version = env!("CARGO_PKG_VERSION");
    let _ = writeln!(
        out,
        ".TH {} 1 \"\" \"floe {version}\" \"floe\"\n.SH NAME\n{} \\- {}",
        name.to_uppercase(),
        escaped(name),
        escaped(line)
    );
}

fn page(verb: &Verb) -> String {
    let mut out = String::new();
    head(&mut out, &format!("floe-{}", verb.name), verb.line);
    let (before, after) = verb.text.split_once("---\n").unwrap_or((verb.text, ""));
    // The first line is its name, and what it does.
    let before = before.split_once('\n').map_or("", |(_, rest)| rest);
    let usage = escaped(&format!("floe {} {}", verb.name, verb.arguments));
    let _ = writeln!(out, ".SH SYNOPSIS\n{usage}\n.SH DESCRIPTION");
    prose(&mut out, before.trim_start_matches('\n'));
    let _ = writeln!(out, ".SH OPTIONS");
    options(&mut out, verb.name, &[Owner::Here]);
    if !rows(verb.name, &[Owner::HandedOn]).is_empty() {
        let _ = writeln!(out, ".SH OPTIONS OF THE VERB ON THE BOARD");
        options(&mut out, verb.name, &[Owner::HandedOn]);
    }
    let _ = writeln!(out, ".SH COMMON OPTIONS");
    options(&mut out, verb.name, &[Owner::Common]);
    if matches!(verb.name, "dump" | "create" | "clone") {
        let _ = writeln!(out, ".SH WHAT \\-\\-golden EMPTIES");
        for item in golden::LIST {
            let _ = writeln!(out, ".TP\n{}\n{}", escaped(item.path), escaped(item.what));
        }
    }
    if !after.is_empty() {
        let _ = writeln!(out, ".SH NOTES");
        prose(&mut out, after);
    }
    let _ = writeln!(out, ".SH SEE ALSO\n.BR floe (1)");
    out
}

fn overview() -> String {
    let mut out = String::new();
    head(
        &mut out,
        "floe",
        "consistent images of a running Linux device, through a pipe",
    );
    let _ = writeln!(out, ".SH SYNOPSIS\nfloe VERB ...\n.SH VERBS");
    for verb in VERBS {
        let usage = format!("{} {}", verb.name, verb.arguments);
        let _ = writeln!(
            out,
            ".TP\n{}\n{}; see\n.BR floe\\-{} (1)",
            escaped(usage.trim_end()),
            escaped(verb.line),
            verb.name
        );
    }
    let _ = writeln!(out, ".SH COMMON OPTIONS");
    options(&mut out, "", &[Owner::Common]);
    let _ = writeln!(
        out,
        ".SH EXIT STATUS\n.TP\n0\ndone, flushed, complete and consistent\n.TP\n1\nthe environment failed; what was written is not complete\n\
         .TP\n2\nbad command line; nothing was touched\n.TP\n3\nthe input is corrupt, truncated or of a format that is not ours\n\
         .TP\n4\nunderstood and refused; nothing was written\n\
         .SH FILES\n.TP\n/etc/floe.conf\nlines store = DIR and SOURCE = TARGET; # begins a comment"
    );
    out
}

// ---- completions ------------------------------------------------------------------------------------------------------

/// Names of the options of `verb` that `which` lets through.
fn names(verb: &str, which: impl Fn(&Row) -> bool) -> Vec<&'static str> {
    let rows = rows(verb, ALL).into_iter().map(|(_, row)| row);
    rows.filter(which).flat_map(|row| row.names()).collect()
}

fn bash() -> String {
    let verbs: Vec<&str> = VERBS.iter().map(|verb| verb.name).collect();
    let mut out = format!(
        "# bash completion for floe {}; made by tools/pages.\n_floe() {{\n    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} word verb= all= valued=\n    \
         for word in \"${{COMP_WORDS[@]:1:COMP_CWORD-1}}\"; do\n        case $word in {}) verb=$word; break ;; esac\n    done\n    case $verb in\n",
        env!("CARGO_PKG_VERSION"),
        verbs.join("|")
    );
    for verb in verbs.iter().copied().chain([""]) {
        let pattern = if verb.is_empty() { "*" } else { verb };
        let valued = names(verb, |row| row.takes() == Takes::Value);
        let _ = writeln!(
            out,
            "        {pattern}) all='{}' valued=' {} ' ;;",
            names(verb, |_| true).join(" "),
            valued.join(" ")
        );
    }
    let _ = writeln!(
        out,
        "    esac\n    COMPREPLY=()\n    if [[ $valued == *\" $prev \"* ]]; then COMPREPLY=($(compgen -f -- \"$cur\"))\n    \
         elif [[ $cur == -* ]]; then COMPREPLY=($(compgen -W \"$all\" -- \"$cur\"))\n    \
         elif [[ -z $verb ]]; then COMPREPLY=($(compgen -W '{} help' -- \"$cur\"))\n    \
         else COMPREPLY=($(compgen -f -- \"$cur\"))\n    fi\n}}\ncomplete -o filenames -F _floe floe",
        verbs.join(" ")
    );
    out
}

/// For single quotes in zsh and fish, and for zsh's own signs.
fn quoted(text: &str, signs: &[char]) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '\'' => out.push('\u{2019}'),
            letter if signs.contains(&letter) => {
                out.push('\\');
                out.push(letter);
            }
            letter => out.push(letter),
        }
    }
    out
}

fn zsh() -> String {
    let mut out = format!(
        "#compdef floe\n# zsh completion for floe {}; made by tools/pages.\n_floe() {{\n    local -a verbs\n    local curcontext=$curcontext state line\n    verbs=(\n",
        env!("CARGO_PKG_VERSION")
    );
    for verb in VERBS {
        let _ = writeln!(
            out,
            "        '{}:{}'",
            verb.name,
            quoted(verb.line, &[':', '\\'])
        );
    }
    out.push_str("    )\n    _arguments -C '1:verb:->verb' '*::argument:->rest'\n    case $state in\n    verb) _describe verb verbs ;;\n    rest) case $words[1] in\n");
    for verb in VERBS {
        let _ = writeln!(out, "        {}) _arguments \\", verb.name);
        for (_, row) in rows(verb.name, ALL) {
            let help = quoted(row.help, &['[', ']', '\\', ':']);
            let value = match row.takes() {
                Takes::Value => format!(":{}:_files", quoted(row.value.trim(), &[':', '\\'])),
                Takes::Nothing | Takes::Perhaps => String::new(),
            };
            for name in row.names() {
                let _ = writeln!(out, "            '*{name}[{help}]{value}' \\");
            }
        }
        out.push_str("            '*:argument:_files' ;;\n");
    }
    out.push_str("        esac ;;\n    esac\n}\n_floe \"$@\"\n");
    out
}

fn fish() -> String {
    let mut out = format!(
        "# fish completion for floe {}; made by tools/pages.\n",
        env!("CARGO_PKG_VERSION")
    );
    for verb in VERBS {
        let _ = writeln!(
            out,
            "complete -c floe -n __fish_use_subcommand -a {} -d '{}'",
            verb.name,
            quoted(verb.line, &['\\'])
        );
        for (_, row) in rows(verb.name, ALL) {
            let mut line = format!(
                "complete -c floe -n '__fish_seen_subcommand_from {}'",
                verb.name
            );
            for name in row.names() {
                let _ = match name.strip_prefix("--") {
                    Some(long) => write!(line, " -l {long}"),
                    None => write!(line, " -s {}", name.trim_start_matches('-')),
                };
            }
            if row.takes() == Takes::Value {
                line.push_str(" -r");
            }
            let _ = writeln!(out, "{line} -d '{}'", quoted(row.help, &['\\']));
        }
    }
    out
}
