# From the header, a C file that defines every function, empty: what abidw reads the ABI from. The functions that are exported are
# the library's own (a test compares them with the header); their types are the header's, which is made from the source.
BEGIN { print "#include <prereg.h>" }
/^(int|void|void \*|size_t|uint32_t|uint64_t|const char \*)[ ]*prereg_[a-z_]+\(/ { inside = 1 }
inside {
    void = void || /^void prereg/
    text = text $0 "\n"
    if (/\);$/) {
        sub(/;\n$/, void ? " {}" : " { return 0; }", text)
        print text
        text = ""; inside = 0; void = 0
    }
}
