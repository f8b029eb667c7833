"""tmp"""
import re, unicodedata
def words(text):
    text = unicodedata.normalize("NFKD", text.lower())
    text = "".join(c for c in text if not unicodedata.combining(c) and c not in "'’`")
    return re.findall(r"[^\W_]+", text)
