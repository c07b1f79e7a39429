//! The paths of modules and items that code names: by `use`, and where they stand in full.

use super::source::words;

/// A path as it was written, and the line that it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) path: Vec<String>,
    pub(crate) line: usize,
}

/// Every path that begins with `crate`, `self` or `super`, and whatever else is imported.
pub(crate) fn paths(code: &str) -> Vec<Named> {
    let mut all = Vec::new();
    let mut rest = code.as_bytes().to_vec();
    for at in words(code, "use") {
        let tree = &code[at + "use".len()..];
        // `impl Trait + use<'a>` imports nothing.
        if tree.trim_start().starts_with('<') {
            continue;
        }
        let tree = &tree[..tree.find(';').unwrap_or(tree.len())];
        let line = line_of(code, at);
        all.extend(expand(tree).into_iter().map(|path| Named { path, line }));
        rest[at..at + "use".len() + tree.len()].fill(b' ');
    }
    let rest = String::from_utf8_lossy(&rest);
    for root in ["crate", "self", "super"] {
        for at in words(&rest, root) {
            // The second `super` of `super::super` is part of the path that was found already.
            if rest[..at].ends_with("::") {
                continue;
            }
            let path: Vec<String> = path_at(&rest[at..]).map(str::to_owned).collect();
            if path.len() > 1 {
                all.push(Named { path, line: line_of(code, at) });
            }
        }
    }
    all
}

fn line_of(code: &str, at: usize) -> usize {
    code[..at].bytes().filter(|byte| *byte == b'\n').count() + 1
}

/// The words of the path that `code` begins with.
fn path_at(code: &str) -> impl Iterator<Item = &str> {
    let is_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let end = code.find(|c| !is_path(c)).unwrap_or(code.len());
    // A single colon, as in `self: Type`, ends the path.
    code[..end].split("::").map_while(|word| {
        let is_name = !word.is_empty() && !word.contains(':');
        is_name.then_some(word)
    })
}

/// The paths of a `use` tree; `{self}` is its parent, a glob likewise, and a new name (`as`) does not matter.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let tree = tree.trim();
    let Some((prefix, group)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        let words = path.split("::").map(str::trim).filter(|word| !word.is_empty() && *word != "*");
        return vec![words.map(str::to_owned).collect()];
    };
    let prefix: Vec<String> = prefix.split("::").map(|word| word.trim().to_owned()).collect();
    let prefix = &prefix[..prefix.len().saturating_sub(1)];
    let group = group.trim_end().strip_suffix('}').unwrap_or(group);
    let mut all = Vec::new();
    for member in members(group) {
        for path in expand(member) {
            let is_parent = path.first().is_some_and(|word| word == "self");
            let inner = if is_parent { &[][..] } else { &path[..] };
            all.push([prefix, inner].concat());
        }
    }
    all
}

/// What commas outside of inner braces separate.
fn members(group: &str) -> Vec<&str> {
    let (mut depth, mut from, mut all) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                all.push(&group[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    all.push(&group[from..]);
    all.retain(|member| !member.trim().is_empty());
    all
}
