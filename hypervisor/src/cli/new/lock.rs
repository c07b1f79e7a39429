//! The lock file of a project, so that its first build needs no look at the registry.

/// The template's lock file for a package called `name`, and others whose names begin with it, in cargo's order.
pub(super) fn for_package(name: &str, template: &str) -> String {
    let begin = "[[package]]\n";
    let text = template.replace("name = \"my-kernel", &format!("name = \"{name}"));
    let mut parts = text.split(begin);
    let head = parts.next().unwrap_or_default();
    let mut packages: Vec<&str> = parts.map(str::trim_end).collect();
    packages.sort_by_key(|package| package.lines().next().map(str::to_owned));
    let packages: Vec<String> = packages.into_iter().map(|package| format!("{begin}{package}\n")).collect();
    format!("{head}{}", packages.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_sorted() {
        let text = "# head\nversion = 4\n\n[[package]]\nname = \"b\"\nversion = \"1\"\n\n[[package]]\nname = \"my-kernel\"\nversion = \"2\"\n";
        assert_eq!(for_package("my-kernel", text), text);
        let renamed = "# head\nversion = 4\n\n[[package]]\nname = \"a\"\nversion = \"2\"\n\n[[package]]\nname = \"b\"\nversion = \"1\"\n";
        assert_eq!(for_package("a", text), renamed);
    }
}
