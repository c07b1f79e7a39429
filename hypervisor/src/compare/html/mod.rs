//! A result as one page that needs nothing else: no network, no other file.
//!
//! The page is a template, its style, its script and the result as JSON. The script draws what it finds there; here the
//! result is no more than embedded, and of a recorded one [`check_shape`] says whether the script can draw it. A
//! guest's own words are in it, so that what is written between `<script>` tags may not end them, and the script never
//! makes markup of a string. A policy in the page forbids loading anything.

mod shape;

use serde::Serialize;

pub use shape::check as check_shape;

const TEMPLATE: &str = include_str!("report.html");
const CSS: &str = include_str!("report.css");
/// One script in several files, each of which uses those before it.
const JS: [&str; 5] = [
    include_str!("model.js"),
    include_str!("draw.js"),
    include_str!("overview.js"),
    include_str!("workload.js"),
    include_str!("report.js"),
];

/// The page that shows `result`: a `Comparison`, a `SideBySide`, or one of them as it was recorded.
///
/// # Errors
/// When `result` cannot be written as JSON.
pub fn html(result: &impl Serialize) -> serde_json::Result<String> {
    let data = embedded(&serde_json::to_string(result)?);
    let script = format!("\"use strict\";\n{{\n{}\n}}\n", JS.join("\n"));
    Ok(filled(TEMPLATE, &[("{{CSS}}", CSS), ("{{DATA}}", &data), ("{{JS}}", &script)]))
}

/// JSON that holds no `<`, so that neither `</script>` nor `<!--` is in it. Its strings are the only place for one.
fn embedded(json: &str) -> String {
    json.replace('<', "\\u003c")
}

/// The template with its places filled, in their order. What is filled in is not searched for places.
fn filled(template: &str, values: &[(&str, &str)]) -> String {
    let (mut out, mut rest) = (String::new(), template);
    for (place, value) in values {
        let Some((before, after)) = rest.split_once(place) else { continue };
        out += before;
        out += value;
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    /// What a browser takes as the data: all up to the first end tag, whatever its case.
    fn data_in(page: &str) -> Value {
        let (_, rest) = page.split_once("id=\"data\">").unwrap();
        let end = rest.to_ascii_lowercase().find("</script").unwrap();
        serde_json::from_str(&rest[..end]).unwrap()
    }

    #[test]
    fn the_words_of_a_guest_end_no_script() {
        let hostile =
            json!({"a": "</script><script>alert(1)</script>", "<!-- <script>": "{{JS}} </SCRIPT\n>"});
        let page = html(&hostile).unwrap();
        assert_eq!(data_in(&page), hostile);
        assert_eq!(page.matches("<script").count(), 2, "those of the template");
    }

    #[test]
    fn nothing_is_loaded_from_elsewhere() {
        let page = html(&json!({})).unwrap();
        assert!(page.contains("default-src 'none'") && !page.contains("{{"));
        let outside = |line: &&str| {
            let line = line.replace("http://www.w3.org/2000/svg", "");
            ["http:", "https:", "src=\"", "url(", "@import", "import(", "innerHTML"]
                .iter()
                .any(|word| line.contains(word))
        };
        assert_eq!(page.lines().find(outside), None);
    }

    proptest! {
        #[test]
        fn any_text_survives(text in "(<|/|script|>|!--|\\\\|\"|\\{\\{JS\\}\\}|\\PC){0,40}") {
            let value = json!({ "text": text });
            prop_assert_eq!(data_in(&html(&value).unwrap()), value);
        }
    }
}
