"""CapFilt: a captioner writes about pictures, a filter judges its texts and those of the web (BLIP, section 3.3)."""
