//! Options of a tool: pairs of a name and a value.

use std::collections::HashMap;
use std::fmt::Display;
use std::str::FromStr;

pub struct Given(HashMap<String, String>);

impl Given {
    pub fn read() -> Result<Self, String> {
        let (mut given, mut args) = (HashMap::new(), std::env::args().skip(1));
        while let Some(name) = args.next() {
            let value = args.next().ok_or(format!("{name} needs a value"))?;
            given.insert(name, value);
        }
        Ok(Self(given))
    }

    pub fn text(&mut self, name: &str) -> Option<String> {
        self.0.remove(name)
    }

    pub fn number<T: FromStr<Err: Display>>(&mut self, name: &str, default: T) -> Result<T, String> {
        self.text(name).map_or(Ok(default), |text| text.parse().map_err(|e| format!("{name}: {e}")))
    }

    /// What was not asked for is no option.
    pub fn end(self) -> Result<(), String> {
        self.0.into_keys().next().map_or(Ok(()), |unknown| Err(format!("unknown option {unknown}")))
    }
}
