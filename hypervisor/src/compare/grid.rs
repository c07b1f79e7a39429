//! A table of many narrow columns that fits a terminal: columns that do not fit stand in further blocks below.
//!
//! Plain text without rules, because they would take three characters of each column. What is written depends on the
//! cells and the width alone.

/// Between columns.
const GAP: usize = 2;

/// A table: rows by name, columns of one or several right-aligned parts.
#[derive(Debug, Default)]
pub(super) struct Grid {
    rows: Vec<String>,
    columns: Vec<Column>,
}

/// A column.
#[derive(Debug)]
struct Column {
    title: Vec<String>,
    /// For each row its parts: as many in every row.
    cells: Vec<Vec<String>>,
}

impl Grid {
    /// A table with these rows and no columns.
    pub(super) fn new(rows: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { rows: rows.into_iter().map(Into::into).collect(), columns: Vec::new() }
    }

    /// Adds a column: for each row its parts. A title is broken at its hyphen where that makes the column narrower.
    pub(super) fn column(&mut self, title: &str, cells: Vec<Vec<String>>) {
        let mut column = Column { title: vec![title.to_owned()], cells };
        if let Some((first, second)) = title.split_once('-')
            && title.len() > column.body_width()
        {
            column.title = vec![format!("{first}-"), second.to_owned()];
        }
        self.columns.push(column);
    }

    /// The table as text, in lines of at most `width` characters if every single column fits.
    pub(super) fn text(&self, width: usize) -> String {
        let name_width = self.rows.iter().map(|row| row.chars().count()).max().unwrap_or(0);
        let (mut out, mut rest) = (String::new(), self.columns.as_slice());
        while !rest.is_empty() {
            let mut used = name_width;
            let fit = rest.iter().take_while(|column| {
                used += GAP + column.width();
                used <= width
            });
            let (block, others) = rest.split_at(fit.count().max(1));
            if !out.is_empty() {
                out.push('\n');
            }
            self.write_block(&mut out, name_width, block);
            rest = others;
        }
        out
    }

    fn write_block(&self, out: &mut String, name_width: usize, block: &[Column]) {
        let titles = block.iter().map(|column| column.title.len()).max().unwrap_or(0);
        for line in 0..titles {
            let words = block.iter().map(|column| {
                // The last lines of the titles stand side by side.
                let missing = titles - column.title.len();
                let word = line.checked_sub(missing).and_then(|line| column.title.get(line));
                format!("{:>width$}", word.map_or("", String::as_str), width = column.width())
            });
            write_line(out, name_width, "", words);
        }
        for (row, name) in self.rows.iter().enumerate() {
            let cells =
                block.iter().map(|column| format!("{:>width$}", column.cell(row), width = column.width()));
            write_line(out, name_width, name, cells);
        }
    }
}

fn write_line(out: &mut String, name_width: usize, name: &str, cells: impl Iterator<Item = String>) {
    let mut line = format!("{name:<name_width$}");
    for cell in cells {
        line.extend(std::iter::repeat_n(' ', GAP));
        line += &cell;
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

impl Column {
    /// The widest of each part.
    fn part_widths(&self) -> Vec<usize> {
        let parts = self.cells.iter().map(Vec::len).max().unwrap_or(0);
        let widest = |part: usize| {
            let texts = self.cells.iter().filter_map(|cell| cell.get(part));
            texts.map(|text| text.chars().count()).max().unwrap_or(0)
        };
        (0..parts).map(widest).collect()
    }

    fn body_width(&self) -> usize {
        let widths = self.part_widths();
        widths.iter().sum::<usize>() + widths.len().saturating_sub(1)
    }

    fn width(&self) -> usize {
        self.title.iter().map(|line| line.chars().count()).max().unwrap_or(0).max(self.body_width())
    }

    fn cell(&self, row: usize) -> String {
        let parts = self.cells.get(row).map_or(&[][..], Vec::as_slice);
        let padded = parts.iter().zip(self.part_widths()).map(|(part, width)| format!("{part:>width$}"));
        padded.collect::<Vec<_>>().join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid() -> Grid {
        let mut grid = Grid::new(["one", "three"]);
        let cells = |a: [&str; 2], b: [&str; 2]| [a, b].map(|row| row.map(str::to_owned).to_vec()).to_vec();
        grid.column("trap", cells(["8.80 ms", "1000"], ["1 s", "5"]));
        grid.column("interpret-nocache", cells(["0.1", "0"], ["12", "10"]));
        grid
    }

    #[test]
    fn parts_are_aligned_and_titles_broken() {
        let expected = [
            "                     interpret-",
            "               trap     nocache",
            "one    8.80 ms 1000      0.1  0",
            "three      1 s    5       12 10",
        ];
        for width in [80, 31] {
            assert!(grid().text(width).lines().eq(expected), "{}", grid().text(width));
        }
    }

    #[test]
    fn columns_that_do_not_fit_stand_below() {
        let text = grid().text(30);
        assert!(text.lines().all(|line| line.len() <= 30), "{text}");
        let blocks: Vec<&str> = text.split("\n\n").collect();
        assert_eq!((blocks.len(), blocks[1].lines().count()), (2, 4), "{text}");
        assert!(blocks.iter().all(|block| block.contains("three")));
        assert_eq!(grid().text(0), text, "a single column is not divided");
    }
}
