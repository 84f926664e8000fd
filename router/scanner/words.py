"""Pure: the words that stand beside a number and say what it is; the names of months. In lower case."""

from __future__ import annotations

CALL = (
    "phone", "telephone", "tel", "mobile", "cell", "cellphone", "fax", "call", "called", "calling", "dial",
    "whatsapp", "sms", "text me", "reach", "ring", "contact", "answering", "messages to", "messages from",
    "telefon", "telefono", "teléfono",
    "téléphone", "portable", "handy", "rufnummer", "numéro", "telefoon", "telemóvel", "celular", "móvil", "телефон",
    "电话", "手机", "電話", "hotline", "landline", "phone number", "my number", "emergency",
)  # fmt: skip
BORN = (
    "born", "birth", "birthday", "birthdate", "dob", "d.o.b", "date of birth", "geboren", "geburtsdatum", "geb",
    "né le", "née le", "naissance", "nacido", "nacida", "nacimiento", "nascita", "nato il", "nata il", "nascimento",
    "geboorte", "geboortedatum", "födelsedatum", "född", "fødselsdato", "født", "syntymäaika", "urodzenia",
    "рождения", "родился", "出生", "生日", "生年月日", "생년월일", "doğum",
)  # fmt: skip
MONTHS = (
    r"(?:jan(?:uary|vier|uar)?|feb(?:ruary|ruar)?|f(?:é|e)vrier|mar(?:ch|s)?|m(?:ä|ae)rz|apr(?:il)?|avril|may|mai|mayo|"
    r"june?|juin|juni|july?|juillet|juli|aug(?:ust)?|ao(?:û|u)t|sep(?:t(?:ember|embre)?)?|oct(?:ober|obre)?|okt(?:ober)?|"
    r"nov(?:ember|embre)?|dec(?:ember)?|d(?:é|e)cembre|dez(?:ember)?|enero|febrero|marzo|abril|junio|julio|agosto|"
    r"septiembre|octubre|noviembre|diciembre)"
)
PASSPORT = (
    "passport", "passport no", "passeport", "pasaporte", "reisepass", "passaporto", "passaporte", "paspoort",
    "paszport", "pass-nr", "passnummer", "паспорт", "护照", "旅券", "여권", "pasaport",
)  # fmt: skip
RECORD = (
    "mrn", "medical record", "medical record number", "patient", "patient id", "patient no", "patient number",
    "chart number", "chart no", "hospital number", "hospital id", "health record", "case number", "patientennummer",
    "fallnummer", "ipp", "dossier médical", "numéro de dossier", "historia clínica", "病历号", "病案号",
)  # fmt: skip
INSURANCE = (
    "insurance", "insured", "policy number", "policy no", "member id", "member number", "membership id", "subscriber",
    "subscriber id", "group number", "health plan", "medicare", "medicaid", "beneficiary", "mbi", "hicn",
    "krankenversicherung", "krankenkasse", "versichertennummer", "kvnr", "assurance", "mutuelle", "carte vitale",
    "seguro", "tessera sanitaria", "ehic", "npi", "health card", "医保",
)  # fmt: skip
