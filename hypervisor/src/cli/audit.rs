//! `paravane audit`: what in a kernel's code does not do at CPL 3 what it does at CPL 0.

use std::borrow::Cow;
use std::path::PathBuf;

use anyhow::Context;
use clap::builder::PossibleValuesParser;
use serde::Serialize;

use super::{input_file, print};
use crate::audit::{Audit, Class, Effect, Patchable, Policy, audit, patchable, patchable_text, text};
use crate::image::builtin;
use crate::text::printable;

const HELP: &str = "\
Examples:
  paravane audit                          the built-in guest, as an example of a clean one
  paravane audit --bare                   its bare-PC build, as an example of one that is not
  paravane audit my-kernel.elf            an ELF file of any kernel, an image for Paravane or not
  paravane audit my-kernel.elf --deny silent mixed --allow identify
  paravane audit --bare --patchable       how each could be replaced by a jump to code that does not trap
  paravane audit my-kernel.elf --json | jq '.findings[] | select(.effect == \"silent\")'

An instruction that traps costs a trap; one that goes wrong silently is a bug. So only the latter matter, \
unless --deny says otherwise.

A kernel that knows better declares so where the instruction is, in a section named .paravane.audit: the \
instruction's address (8 bytes), then the reason, ended by a zero byte. What is declared is listed and does \
not matter.

Exit status:
  0      nothing that matters was found
  1      something that matters was found
  2      the command line makes no sense, or the file cannot be audited: it is not ELF for x86-64, has no
         code, or is cut off";

/// The file cannot be audited: as for grep and diff, not to be taken for a finding.
const CANNOT_AUDIT: u8 = 2;
/// Something that matters was found.
const FOUND: u8 = 1;

/// Arguments of `paravane audit`.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(super) struct AuditArgs {
    /// The kernel: an ELF file, linked or an object file (.o, .ko), compressed or not [default: the built-in
    /// reference guest]
    image: Option<PathBuf>,
    /// Audit the built-in guest's bare-PC build
    #[arg(long, conflicts_with = "image")]
    bare: bool,
    /// What matters: effects (silent, mixed, traps) or classes
    #[arg(long, value_name = "CLASS", num_args = 1.., value_delimiter = ',', default_value = "silent")]
    #[arg(value_parser = PossibleValuesParser::new(Effect::ALL.map(Effect::id).into_iter().chain(class_names())))]
    deny: Vec<String>,
    /// Classes that do not matter, whatever --deny says
    #[arg(long, value_name = "CLASS", num_args = 1.., value_delimiter = ',')]
    #[arg(value_parser = PossibleValuesParser::new(class_names()))]
    allow: Vec<String>,
    /// Say instead how `--technique patch` would replace each of them by a jump
    #[arg(long, conflicts_with_all = ["deny", "allow"])]
    patchable: bool,
    /// List every instruction, however many there are of a class
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How many instructions of a class are listed unless `--all` are wanted.
const SOME: usize = 12;

fn class_names() -> impl Iterator<Item = &'static str> {
    Class::ALL.into_iter().map(Class::id)
}

/// The shape of `--json`.
#[derive(Serialize)]
struct Json<'a> {
    schema: u32,
    image: &'a str,
    /// The classes that matter.
    denied: Vec<&'static str>,
    /// How many instructions of these were found that the image does not declare deliberate.
    matter: u64,
    #[serde(flatten)]
    audit: &'a Audit,
}

/// The shape of `--patchable --json`.
#[derive(Serialize)]
struct PatchableJson<'a> {
    schema: u32,
    image: &'a str,
    #[serde(flatten)]
    patchable: &'a Patchable,
}

fn print_patchable(args: &AuditArgs, name: &str, found: &Patchable) -> anyhow::Result<u8> {
    if args.json {
        let json = PatchableJson { schema: 1, image: name, patchable: found };
        print(&format!("{}\n", serde_json::to_string_pretty(&json)?))?;
    } else {
        print(&patchable_text(found, name, if args.all { usize::MAX } else { 0 }))?;
    }
    Ok(0)
}

/// Audits; the exit status of the process.
pub(super) fn run(args: &AuditArgs) -> anyhow::Result<u8> {
    let cannot = |error: &anyhow::Error| {
        eprintln!("paravane: {}", super::message(error));
        Ok(CANNOT_AUDIT)
    };
    let (name, bytes, audit) = match load(args) {
        Ok(loaded) => loaded,
        Err(error) => return cannot(&error),
    };
    if args.patchable {
        return match patchable(&bytes, &audit).with_context(|| printable::printable(&name).to_string()) {
            Ok(found) => print_patchable(args, &name, &found),
            Err(error) => cannot(&error),
        };
    }
    let policy = policy(args);
    let matter = policy.total(&audit);
    if args.json {
        let json = Json { schema: 1, image: &name, denied: policy.denied(), matter, audit: &audit };
        print(&format!("{}\n", serde_json::to_string_pretty(&json)?))?;
    } else {
        print(&text(&audit, &name, &policy, if args.all { usize::MAX } else { SOME }))?;
    }
    Ok(if matter == 0 { 0 } else { FOUND })
}

fn load(args: &AuditArgs) -> anyhow::Result<(String, Cow<'static, [u8]>, Audit)> {
    let (name, bytes): (String, Cow<'static, [u8]>) = match &args.image {
        None if args.bare => ("built-in bare guest".to_owned(), builtin::BARE.into()),
        None => ("built-in guest".to_owned(), builtin::PV.into()),
        Some(path) => {
            let name = path.to_string_lossy().into_owned();
            let bytes = input_file::image(path, u64::MAX)
                .with_context(|| format!("cannot read {}", printable::path(path)))?;
            (name, bytes.into())
        }
    };
    let audit = audit(&bytes).with_context(|| printable::printable(&name).to_string())?;
    Ok((name, bytes, audit))
}

fn policy(args: &AuditArgs) -> Policy {
    let named =
        |names: &[String]| Class::ALL.into_iter().filter(|c| names.iter().any(|n| n == c.id())).collect();
    let effects = Effect::ALL.into_iter().filter(|e| args.deny.iter().any(|n| n == e.id())).collect();
    Policy::new(effects, named(&args.deny), named(&args.allow))
}
