//! A table of text: the first column to the left, numbers to the right.

use std::fmt;

/// Rows of equal length, the first of them the head.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|name| (*name).to_owned()).collect()] }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.rows[0].len(), "a cell for each column");
        self.rows.push(cells.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for row in &self.rows {
            let mut line = String::from(" ");
            for (column, cell) in row.iter().enumerate() {
                let width = self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
                let number = self.rows[1..].iter().all(|row| row[column].parse::<usize>().is_ok());
                line += &if number { format!(" {cell:>width$}") } else { format!(" {cell:<width$}") };
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
