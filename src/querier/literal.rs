//! Arithmetic of literals: what Grafana sends to test a data source.

/// Deepest nesting of parentheses and signs.
const MAX_DEPTH: usize = 32;

/// A computed literal expression.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Literal {
    pub value: f64,
    /// Was a `vector(..)` part of it? Then the result is a vector, else a scalar.
    pub is_vector: bool,
}

/// Computes an expression of numbers, `vector(..)`, `+ - * /` and parentheses. `None` if it is anything else.
pub(super) fn evaluate(text: &str) -> Option<Literal> {
    let mut parser = Parser { rest: text.trim_start(), depth: 0 };
    let value = parser.sum()?;
    parser.rest.is_empty().then_some(value)
}

struct Parser<'a> {
    rest: &'a str,
    depth: usize,
}

impl Parser<'_> {
    fn sum(&mut self) -> Option<Literal> {
        let mut left = self.product()?;
        loop {
            if self.accept("+") {
                left = combine(left, self.product()?, |a, b| a + b);
            } else if self.accept("-") {
                left = combine(left, self.product()?, |a, b| a - b);
            } else {
                return Some(left);
            }
        }
    }

    fn product(&mut self) -> Option<Literal> {
        let mut left = self.operand()?;
        loop {
            if self.accept("*") {
                left = combine(left, self.operand()?, |a, b| a * b);
            } else if self.accept("/") {
                left = combine(left, self.operand()?, |a, b| a / b);
            } else {
                return Some(left);
            }
        }
    }

    fn operand(&mut self) -> Option<Literal> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return None;
        }
        let operand = if self.accept("vector") {
            self.parenthesised().map(|l| Literal { is_vector: true, ..l })
        } else if self.rest.starts_with('(') {
            self.parenthesised()
        } else if self.accept("-") {
            self.operand().map(|l| Literal { value: -l.value, ..l })
        } else {
            self.number()
        };
        self.depth -= 1;
        operand
    }

    fn parenthesised(&mut self) -> Option<Literal> {
        if !self.accept("(") {
            return None;
        }
        let inner = self.sum()?;
        self.accept(")").then_some(inner)
    }

    fn number(&mut self) -> Option<Literal> {
        let len = self.rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(self.rest.len());
        let (digits, rest) = self.rest.split_at(len);
        let value = digits.parse().ok()?;
        self.rest = rest.trim_start();
        Some(Literal { value, is_vector: false })
    }

    fn accept(&mut self, token: &str) -> bool {
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest.trim_start();
                true
            }
            None => false,
        }
    }
}

fn combine(a: Literal, b: Literal, operation: fn(f64, f64) -> f64) -> Literal {
    Literal { value: operation(a.value, b.value), is_vector: a.is_vector || b.is_vector }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_computed_and_nothing_else() {
        let vector = |value| Some(Literal { value, is_vector: true });
        let scalar = |value| Some(Literal { value, is_vector: false });
        let deep = format!("{}1{}", "(".repeat(10_000), ")".repeat(10_000));
        let cases = [
            ("vector(1)+vector(1)", vector(2.0)),
            (" vector( 1 ) + vector(1) ", vector(2.0)),
            ("1 + 2*3", scalar(7.0)),
            ("(1+2)*3 - -1", scalar(10.0)),
            ("vector(7)/2", vector(3.5)),
            ("1-2-3", scalar(-4.0)),
            ("", None),
            ("vector(1", None),
            ("vector", None),
            ("1..2", None),
            ("rate({a=\"b\"}[1m])", None),
            ("{a=\"b\"}", None),
            ("1+", None),
            (deep.as_str(), None),
        ];
        for (text, expected) in cases {
            assert_eq!(evaluate(text), expected, "{text}");
        }
    }
}
