//! Hierarchies as a picture (SVG): parents left, children right, one card an image.
//!
//! The same images give the same picture, byte for byte. All text is escaped: names come from strangers.
//!
//! ```text
//!   base ── monday ── tuesday     the first child goes on in its parent's row,
//!        └─ other                 each further one starts a row of its own
//! ```

use crate::{command::tree::Node, size};

/// Pixels: a card, what lies between two of them, the border around all.
const CARD: (u64, u64) = (240, 68);
const GAP: (u64, u64) = (52, 16);
const EDGE: u64 = 24;
/// Between two hierarchies, on top of the gap.
const APART: u64 = 20;
/// Characters of a name that fit on a card.
const NAME_MAX: usize = 26;
/// Pixels of the bar that shows how much of the disk takes space.
const BAR: u64 = CARD.0 - 32;

const STYLE: &str = "\
svg{background:#f8fafc;font-family:system-ui,-apple-system,'Segoe UI',sans-serif;font-size:12px}\
.card{fill:#fff;stroke:#cbd5e1}.head .card{stroke:#f59e0b;stroke-width:2}\
.lost .card{fill:none;stroke:#dc2626;stroke-dasharray:5 4}.lost .name{fill:#dc2626}\
.name{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:13px;font-weight:600;fill:#0f172a}\
.fact{fill:#64748b}.head .tag{fill:#b45309;font-weight:600}.bad{fill:#dc2626}\
.link{fill:none;stroke:#94a3b8;stroke-width:1.5}.bar{fill:#e2e8f0}\
.qcow2{fill:#3b82f6}.raw{fill:#10b981}.other{fill:#8b5cf6}\
@media(prefers-color-scheme:dark){svg{background:#0f172a}.card{fill:#1e293b;stroke:#475569}\
.name{fill:#f1f5f9}.fact{fill:#94a3b8}.bar{fill:#334155}.link{stroke:#64748b}.head .tag{fill:#fbbf24}}";

/// Draws the hierarchies, and below them what could not be read; returns the lines of the file.
pub fn draw(roots: &[Node], unreadable: &[String]) -> Vec<String> {
    let mut picture = Picture { lines: Vec::new(), links: Vec::new(), x_max: EDGE + CARD.0, y: EDGE };
    for root in roots {
        picture.root(root);
        picture.y += CARD.1 + GAP.1 + APART;
    }
    let mut notes = Vec::new();
    for what in unreadable {
        notes.push(format!(
            r#"<text class="bad" x="{EDGE}" y="{}">unreadable: {}</text>"#,
            picture.y,
            escaped(what)
        ));
        picture.y += 20;
    }
    let (width, height) = (picture.x_max + EDGE, picture.y + EDGE - APART);
    let mut lines = vec![
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">"#
        ),
        "<title>Hierarchies of disk images</title>".to_owned(),
        format!("<style>{STYLE}</style>"),
    ];
    lines.append(&mut picture.links);
    lines.append(&mut picture.lines);
    lines.append(&mut notes);
    lines.push("</svg>".to_owned());
    lines
}

/// A picture in the making.
struct Picture {
    lines: Vec<String>,
    /// Drawn first, so that they lie behind the cards.
    links: Vec<String>,
    /// Where the widest row ends.
    x_max: u64,
    /// The top of the row that is filled.
    y: u64,
}

impl Picture {
    /// Draws a hierarchy from the row at `y` on; a parent that is not here comes before it.
    fn root(&mut self, root: &Node) {
        let Some(lost) = &root.missing_parent else { return self.node(root, 0) };
        let (x, y) = (EDGE, self.y);
        self.lines.push(format!(r#"<g class="lost"><title>{}</title>"#, escaped(lost)));
        self.card(x, y);
        self.text("name", (x + 16, y + 28), &shortened(lost));
        self.text("fact", (x + 16, y + 48), "the parent, not here");
        self.lines.push("</g>".to_owned());
        self.link((0, y), (1, y));
        self.node(root, 1);
    }

    fn node(&mut self, node: &Node, column: u64) {
        let y = self.y;
        self.image(node, column, y);
        for (nth, child) in node.children.iter().enumerate() {
            if nth > 0 {
                self.y += CARD.1 + GAP.1;
            }
            self.link((column, y), (column + 1, self.y));
            self.node(child, column + 1);
        }
    }

    fn image(&mut self, node: &Node, column: u64, y: u64) {
        let x = left(column);
        let is_head = node.children.is_empty();
        let format = if matches!(node.format, "qcow2" | "raw") { node.format } else { "other" };
        let class = if is_head { "head" } else { "layer" };
        let title = escaped(&format!("{}{}", node.filename, node.users()));
        self.lines.push(format!(r#"<g class="{class}"><title>{title}</title>"#));
        self.card(x, y);
        self.shape(format, (x, y + 12), (5, CARD.1 - 24));
        self.text("name", (x + 16, y + 24), &shortened(&node.name));
        let held = size::show(node.actual_size);
        let facts = format!("{}, {}, {held} held", node.format, size::show(node.virtual_size));
        self.text("fact", (x + 16, y + 42), &facts);
        let tags = [is_head.then_some("head"), (!node.used_by.is_empty()).then_some("in use")];
        let tags: Vec<&str> = tags.into_iter().flatten().collect();
        if !tags.is_empty() {
            let (x, y, tags) = (x + CARD.0 - 4, y - 4, tags.join(", "));
            self.lines.push(format!(r#"<text class="tag" x="{x}" y="{y}" text-anchor="end">{tags}</text>"#));
        }
        self.shape("bar", (x + 16, y + 52), (BAR, 5));
        if let Some(part) = bar(node.actual_size, node.virtual_size) {
            self.shape(format, (x + 16, y + 52), (part, 5));
        }
        self.lines.push("</g>".to_owned());
        self.x_max = self.x_max.max(x + CARD.0);
    }

    fn card(&mut self, x: u64, y: u64) {
        let (width, height) = CARD;
        self.lines.push(format!(
            r#"<rect class="card" x="{x}" y="{y}" width="{width}" height="{height}" rx="9"/>"#
        ));
    }

    fn shape(&mut self, class: &str, (x, y): (u64, u64), (width, height): (u64, u64)) {
        let shape =
            format!(r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}" rx="2"/>"#);
        self.lines.push(shape);
    }

    fn text(&mut self, class: &str, (x, y): (u64, u64), text: &str) {
        self.lines.push(format!(r#"<text class="{class}" x="{x}" y="{y}">{}</text>"#, escaped(text)));
    }

    /// Joins the card at a column and the top of a row to one in the next column.
    fn link(&mut self, (column, from_y): (u64, u64), (to_column, to_y): (u64, u64)) {
        let (x, y) = (left(column) + CARD.0, from_y + CARD.1 / 2);
        let (to_x, to_y) = (left(to_column), to_y + CARD.1 / 2);
        let (bend, back) = (x + GAP.0 / 2, to_x - GAP.0 / 2);
        self.links
            .push(format!(r#"<path class="link" d="M{x} {y} C{bend} {y} {back} {to_y} {to_x} {to_y}"/>"#));
    }
}

const fn left(column: u64) -> u64 {
    EDGE + column * (CARD.0 + GAP.0)
}

/// Returns the pixels that stand for the space taken, `None` for none.
fn bar(held: u64, disk: u64) -> Option<u64> {
    let part = u128::from(held.min(disk)) * u128::from(BAR) / u128::from(disk.max(1));
    (held > 0).then(|| u64::try_from(part).unwrap_or(BAR).max(3))
}

/// Returns a name that fits on a card: the start and the end tell names apart.
fn shortened(name: &str) -> String {
    let letters: Vec<char> = name.chars().collect();
    if letters.len() <= NAME_MAX {
        return name.to_owned();
    }
    let (start, end) = (NAME_MAX / 2, NAME_MAX - NAME_MAX / 2 - 1);
    let start = letters.iter().take(start);
    start.chain(&['…']).chain(letters.iter().skip(letters.len() - end)).collect()
}

/// Returns text as it may stand in XML; characters that XML 1.0 (2.2) has no place for are replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => out.push('\u{fffd}'),
            plain => out.push(plain),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_breaks_out_of_the_picture() {
        assert_eq!(escaped("a<b>&\"c'\n\u{1}é"), "a&lt;b&gt;&amp;&quot;c&#39;\u{fffd}\u{fffd}é");
    }

    #[test]
    fn a_long_name_keeps_its_start_and_its_end() {
        assert_eq!(shortened("short.qcow2"), "short.qcow2");
        let name = shortened("customer-database-2026-11-20-before-upgrade.qcow2");
        assert_eq!((name.chars().count(), name.as_str()), (26, "customer-data…pgrade.qcow2"));
    }

    #[test]
    fn the_bar_shows_what_is_taken() {
        assert_eq!(
            [bar(0, 100), bar(1, 1 << 40), bar(50, 100), bar(200, 100)],
            [None, Some(3), Some(BAR / 2), Some(BAR)]
        );
    }
}
