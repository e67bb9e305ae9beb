"""Models for CTranslate2, https://opennmt.net/CTranslate2: written, and run without torch."""
