// The header in C++: declarations link, and structs can be defined.
#include <prereg.h>

#include <cstdio>
#include <cstring>

int main() {
	prereg_error why;
	prereg_options options;
	std::memset(&options, 0, sizeof options);
	prereg_space *space = nullptr;
	if (prereg_space_new(&options, &space, &why) != -22 || space != nullptr || why.length == 0) return 1;
	if (prereg_space_free(&space) != 0) return 1;
	std::printf("C++ with prereg %s\n", prereg_version());
	return 0;
}
