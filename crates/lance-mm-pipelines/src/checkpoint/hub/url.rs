//! Addresses: parsing, origins, and where a redirect leads.

use ureq::http::Uri;

/// An address of http or https, without user name and fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Url(Uri);

/// Scheme, host and port: a token of one origin is not sent to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Url {
    /// `None` for everything that is no such address.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let uri: Uri = text.parse().ok()?;
        let url = Self(uri);
        let plain = !url.0.authority()?.as_str().contains('@') && url.origin().is_some();
        plain.then_some(url)
    }

    pub(super) fn uri(&self) -> &Uri {
        &self.0
    }

    /// `None` for a scheme other than http and https.
    pub(super) fn origin(&self) -> Option<Origin> {
        let scheme = self.0.scheme_str()?.to_ascii_lowercase();
        let usual = match scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return None,
        };
        let host = self.0.host().filter(|host| !host.is_empty())?.to_ascii_lowercase();
        Some(Origin { scheme, host, port: self.0.port_u16().unwrap_or(usual) })
    }

    pub(super) fn is_https(&self) -> bool {
        self.0.scheme_str().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"))
    }

    /// The address that `location` means when this one answers with it.
    pub(super) fn join(&self, location: &str) -> Option<Self> {
        let (scheme, authority) = (self.0.scheme_str()?, self.0.authority()?.as_str());
        let relative = location.find([':', '/', '?', '#']).is_none_or(|at| !location[at..].starts_with(':'));
        if !relative {
            return Self::parse(location);
        }
        let path = self.0.path();
        let text = if location.starts_with("//") {
            format!("{scheme}:{location}")
        } else if location.starts_with('/') {
            format!("{scheme}://{authority}{location}")
        } else if location.starts_with('?') {
            format!("{scheme}://{authority}{path}{location}")
        } else {
            let folder = &path[..=path.rfind('/')?];
            format!("{scheme}://{authority}{folder}{location}")
        };
        Self::parse(&text)
    }
}

/// One segment of an address: everything but letters, digits and `-._~` as `%XX`.
pub(super) fn encoded(segment: &str) -> String {
    use std::fmt::Write as _;

    segment.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_differ_in_scheme_host_and_port() {
        let origin = |text| Url::parse(text).unwrap().origin().unwrap();
        let here = origin("https://huggingface.co/a");
        assert_eq!(here, origin("https://HuggingFace.co:443/b?c"));
        for other in [
            "http://huggingface.co/a",
            "https://huggingface.co:8443/a",
            "https://cdn.huggingface.co/a",
            "https://huggingface.co.example/a",
            "http://huggingface.co:443/a",
        ] {
            assert_ne!(here, origin(other), "{other}");
        }
        for text in
            ["", "/a", "ftp://a/b", "file:///etc/passwd", "https://", "https://me@host/a", "a b", "host:80"]
        {
            assert_eq!(Url::parse(text), None, "{text}");
        }
    }

    #[test]
    fn redirects_lead_where_the_standard_says() {
        let base = Url::parse("https://host:1/a/b?c=1").unwrap();
        for (location, expected) in [
            ("/x?y", "https://host:1/x?y"),
            ("x", "https://host:1/a/x"),
            ("?d", "https://host:1/a/b?d"),
            ("//other/x", "https://other/x"),
            ("http://other:2/x:y", "http://other:2/x:y"),
            ("/x?u=http://other", "https://host:1/x?u=http://other"),
        ] {
            assert_eq!(base.join(location), Url::parse(expected), "{location}");
        }
        for location in ["", "javascript:x", "file:///etc/passwd", "http://me@host/", "/a b", "//", "http:"] {
            let found = base.join(location);
            assert!(found.is_none() || location.is_empty(), "{location}: {found:?}");
        }
        assert_eq!(encoded("a b/%\u{e9}.json"), "a%20b%2F%25%C3%A9.json");
    }
}
