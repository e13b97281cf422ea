"""Words that name the train, valid and test split in folders, files and columns, by language."""

from __future__ import annotations

from src.classes import nfc

SPLITS = {
    "train": (
        *("train", "training", "trn", "entrenamiento", "treino", "treinamento", "entrainement"),
        *("entraînement", "apprentissage", "addestramento", "обучение", "학습", "훈련"),
        *("训练", "训练集", "訓練", "訓練集", "学習"),
    ),
    "valid": (
        *("val", "valid", "validation", "dev", "validierung", "validacion", "validación"),
        *("validacao", "validação", "convalida", "검증", "验证", "验证集", "驗證", "検証"),
    ),
    "test": (
        *("test", "testing", "tst", "prueba", "pruebas", "teste", "тест", "테스트", "시험"),
        *("测试", "测试集", "測試", "測試集", "テスト"),
    ),
}
SPLIT_OF = {word: split for split, words in SPLITS.items() for word in words}


def split_of_word(word: str) -> str:
    """Return the split that one word names, in any case; "" none."""
    return SPLIT_OF.get(nfc(word).strip().casefold(), "")
