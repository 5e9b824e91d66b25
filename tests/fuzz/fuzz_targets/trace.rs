//! The kernel's trace: the texts that describe it, and pages of it in either word size.
#![no_main]

use floe::trace::page::{EventFormat, PageHeader};

const HEADERS: [&str; 2] = [
    "field: local_t commit; offset:8; size:8; signed:1;\nfield: char data; offset:16; size:4080; signed:0;\n",
    "field: local_t commit; offset:8; size:4; signed:1;\nfield: char data; offset:12; size:4084; signed:1;\n",
];
const FORMAT: &str = "ID: 2097\nfield:unsigned short common_type; offset:0; size:2;\nfield:dev_t dev; offset:8; size:4;\n\
    field:sector_t sector; offset:16; size:8;\nfield:unsigned int nr_sector; offset:24; size:4;\n\
    field:char rwbs[10]; offset:28; size:10;\n";

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // What comes before the first zero byte is a text, which may describe what follows.
    let (text, page) = match data.iter().position(|byte| *byte == 0) {
        Some(end) => (&data[..end], &data[end + 1..]),
        None => (data, data),
    };
    let text = String::from_utf8_lossy(text);
    let own = (PageHeader::parse(&text), EventFormat::parse(&text));
    for header in HEADERS
        .iter()
        .map(|text| PageHeader::parse(text))
        .chain([own.0])
    {
        for format in [EventFormat::parse(FORMAT), own.1] {
            let (Some(header), Some(format)) = (header, format) else {
                continue;
            };
            let mut bytes = 0;
            let mut count = 0;
            let read = header.records(page, |record| {
                bytes += record.len() + 4;
                count += 1;
                if format.is_of(record) {
                    let _ = format.event(record);
                }
            });
            assert!(bytes <= page.len());
            if let Ok(records) = read {
                assert_eq!(records, count);
            }
        }
    }
});
