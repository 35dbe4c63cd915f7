//! Dividing a budget of bytes among matrices.

use lance_mm_tensor::{Error, Result, Scheme};

use crate::matrix::setting;

/// A possible width of a matrix.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Its scheme; `None` leaves it in bf16.
    pub scheme: Option<Scheme>,
    /// Its size: [`stored_bytes`].
    pub bytes: u64,
    /// Expected divergence of the model: relative output error on held-out activations times the sensitivity.
    pub damage: f64,
}

/// A matrix and its possible widths.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its module.
    pub name: String,
    /// Possible widths, at least one.
    pub choices: Vec<Choice>,
}

/// The widths worth trying below bf16, narrow to wide.
pub fn widths() -> Vec<Scheme> {
    let widths =
        [(2, 128), (2, 64), (3, 128), (3, 64), (4, 128), (4, 64), (4, 32), (5, 64), (6, 64), (8, 64)];
    widths.into_iter().filter_map(|(bits, group)| Scheme::affine(bits, group).ok()).collect()
}

/// Bytes of a matrix in a file: words, scales and biases, or bf16 values.
pub fn stored_bytes(rows: usize, cols: usize, scheme: Option<Scheme>) -> u64 {
    let (rows, cols) = (rows as u64, cols as u64);
    match scheme {
        None => rows * cols * 2,
        Some(s) => rows * (cols * s.bits() as u64 / 8 + cols / s.group_size() as u64 * 4),
    }
}

/// Picks a choice for every item so that the sum of damages is small and the bytes stay within `budget`: the smallest
/// price per byte that fits (a Lagrange multiplier), then single upgrades by damage saved per byte. Of equal ones the
/// smaller, then the earlier name wins. Returns one index for each item.
///
/// # Errors
/// An item without choices, damage that is not a number, a budget below the smallest sizes.
pub fn allocate(items: &[Item], budget: u64) -> Result<Vec<usize>> {
    for item in items {
        if item.choices.is_empty() || item.choices.iter().any(|c| !c.damage.is_finite()) {
            return Err(setting(&item.name, "choices with finite damage", format!("{:?}", item.choices)));
        }
    }
    let smallest = at_price(items, f64::INFINITY);
    let least = total(items, &smallest);
    if least > budget {
        return Err(Error::Setting {
            name: "budget".into(),
            expected: format!("at least {least} bytes"),
            found: budget.to_string(),
        });
    }
    let mut picked = lagrange(items, budget, smallest);
    while let Some((item, choice)) = best_upgrade(items, &picked, budget - total(items, &picked)) {
        picked[item] = choice;
    }
    Ok(picked)
}

fn total(items: &[Item], picked: &[usize]) -> u64 {
    items.iter().zip(picked).map(|(item, at)| item.choices[*at].bytes).sum()
}

/// The choices of least `damage + price · bytes`; at an infinite price the smallest.
fn at_price(items: &[Item], price: f64) -> Vec<usize> {
    let cost = |c: &Choice| {
        let bytes = c.bytes as f64;
        if price.is_finite() { (c.damage + price * bytes, bytes) } else { (bytes, c.damage) }
    };
    let best = |item: &Item| {
        let choices = item.choices.iter().enumerate();
        let least = choices.min_by(|(_, a), (_, b)| {
            let ((a, a_next), (b, b_next)) = (cost(a), cost(b));
            a.total_cmp(&b).then(a_next.total_cmp(&b_next))
        });
        least.map_or(0, |(at, _)| at)
    };
    items.iter().map(best).collect()
}

/// The cheapest price that keeps the budget, by bisection of its logarithm.
fn lagrange(items: &[Item], budget: u64, smallest: Vec<usize>) -> Vec<usize> {
    let free = at_price(items, 0.0);
    if total(items, &free) <= budget {
        return free;
    }
    let mut best = smallest;
    let (mut low, mut high) = (-200.0, 200.0);
    for _ in 0..100 {
        let middle: f64 = (low + high) / 2.0;
        let picked = at_price(items, middle.exp());
        if total(items, &picked) <= budget {
            (high, best) = (middle, picked);
        } else {
            low = middle;
        }
    }
    best
}

/// The upgrade that saves most damage per byte among those that fit.
fn best_upgrade(items: &[Item], picked: &[usize], left: u64) -> Option<(usize, usize)> {
    let mut best: Option<(f64, &str, (usize, usize))> = None;
    for (i, item) in items.iter().enumerate() {
        let now = item.choices[picked[i]];
        for (at, choice) in item.choices.iter().enumerate() {
            let saved = now.damage - choice.damage;
            if saved <= 0.0 || choice.bytes > now.bytes + left {
                continue;
            }
            let rate = saved / choice.bytes.saturating_sub(now.bytes).max(1) as f64;
            let is_better =
                best.is_none_or(|(r, name, _)| rate > r || rate == r && item.name.as_str() < name);
            if is_better {
                best = Some((rate, &item.name, (i, at)));
            }
        }
    }
    best.map(|(_, _, at)| at)
}

#[cfg(test)]
mod tests {
    use lance_mm_tensor::testing::seeded;

    use super::*;

    fn item(name: &str, choices: &[(u64, f64)]) -> Item {
        let choice = |(bytes, damage): &(u64, f64)| Choice { scheme: None, bytes: *bytes, damage: *damage };
        Item { name: name.into(), choices: choices.iter().map(choice).collect() }
    }

    #[test]
    fn bytes_are_those_of_the_file() {
        // Totals of the published 4 bit file: 6 171 394 048 values in groups of 128.
        let scheme = Scheme::affine(4, 128).ok();
        assert_eq!(stored_bytes(1, 6_171_394_048, scheme), 6_171_394_048 * 34 / 64);
        assert_eq!(stored_bytes(3, 128, Scheme::affine(3, 32).ok()), 3 * (48 + 16));
        assert_eq!(stored_bytes(3, 128, None), 768);
        let all = widths().into_iter().map(Some).chain([None]);
        let sizes: Vec<u64> = all.map(|w| stored_bytes(1, 128, w)).collect();
        assert_eq!(sizes.len(), 11);
        assert!(sizes.windows(2).all(|w| w[0] < w[1]), "{sizes:?}");
    }

    #[test]
    fn the_sensitive_matrix_gets_the_bytes() {
        let choices = [(10, 1.0), (20, 0.1), (30, 0.05)];
        let strong: Vec<(u64, f64)> = choices.iter().map(|(b, d)| (*b, d * 50.0)).collect();
        let items = [item("a", &choices), item("b", &strong), item("c", &choices)];
        assert_eq!(allocate(&items, 30).unwrap(), [0, 0, 0]);
        assert_eq!(allocate(&items, 40).unwrap(), [0, 1, 0]);
        assert_eq!(allocate(&items, 50).unwrap(), [0, 2, 0]);
        assert_eq!(allocate(&items, 60).unwrap(), [1, 2, 0]);
        assert_eq!(allocate(&items, 1000).unwrap(), [2, 2, 2]);
        let error = allocate(&items, 29).unwrap_err().to_string();
        assert_eq!(error, "budget: expected at least 30 bytes, found 29");
    }

    #[test]
    fn ties_go_by_name() {
        let choices = [(10, 1.0), (20, 0.5)];
        let items = [item("b", &choices), item("a", &choices)];
        assert_eq!(allocate(&items, 30).unwrap(), [0, 1]);
    }

    #[test]
    fn close_to_the_best_of_all_combinations() {
        for seed in 0..20 {
            let values = seeded(15, seed);
            let items: Vec<Item> = (0..5)
                .map(|i| {
                    let d = f64::from(values[i * 3].abs()) + 0.1;
                    let size = 10 + (values[i * 3 + 1].abs() * 20.0) as u64;
                    item(&format!("{i}"), &[(size, d), (size * 2, d * 0.3), (size * 3, d * 0.1)])
                })
                .collect();
            let budget = total(&items, &[1; 5]);
            let damage = |picked: &[usize]| -> f64 {
                items.iter().zip(picked).map(|(item, at)| item.choices[*at].damage).sum()
            };
            let found = allocate(&items, budget).unwrap();
            assert!(total(&items, &found) <= budget);
            let all = (0..243usize).map(|n| [n % 3, n / 3 % 3, n / 9 % 3, n / 27 % 3, n / 81]);
            let fits = all.filter(|picked| total(&items, picked) <= budget);
            let best = fits.map(|picked| damage(&picked)).fold(f64::INFINITY, f64::min);
            assert!(damage(&found) <= best * 1.3 + 1e-9, "{seed}: {} {best}", damage(&found));
        }
    }
}
